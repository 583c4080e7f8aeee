import { initPluginTranslations } from '@grafana/i18n';

import { MillraceDatasource } from './datasource';
import { plugin } from './module';
import pluginJson from './plugin.json';

jest.mock('@grafana/i18n', () => ({
  ...jest.requireActual('@grafana/i18n'),
  initPluginTranslations: jest.fn(() => Promise.resolve({ language: 'en-US' })),
}));

test('the module registers everything that Grafana asks a datasource for', () => {
  expect(plugin.DataSourceClass).toBe(MillraceDatasource);
  expect(plugin.components.QueryEditor).toBeDefined();
  expect(plugin.components.ConfigEditor).toBeDefined();
  expect(plugin.components.QueryEditorHelp).toBeDefined();
  expect(initPluginTranslations).toHaveBeenCalledWith('millrace-metrics-datasource', [expect.any(Function)]);
});

test('plugin.json says what the back end and the tools rely on', () => {
  expect(pluginJson).toMatchObject({
    id: 'millrace-metrics-datasource',
    executable: 'gpx_millrace',
    backend: true,
    metrics: true,
    alerting: true,
    annotations: true,
    multiValueFilterOperators: true,
    category: 'tsdb',
    queryOptions: { minInterval: true },
  });
  expect(pluginJson).not.toHaveProperty('streaming');
  expect(pluginJson).not.toHaveProperty('routes');
});
