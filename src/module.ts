import { DataSourcePlugin } from '@grafana/data';
import { initPluginTranslations } from '@grafana/i18n';
import { loadResources, PromCheatSheet } from '@grafana/prometheus';

import { ConfigEditor } from './components/ConfigEditor';
import { QueryEditor } from './components/QueryEditor';
import { MillraceDatasource } from './datasource';
import pluginJson from './plugin.json';
import { MillraceOptions, MillraceQuery, MillraceSecureOptions } from './types';

// Not awaited: a top-level await turns the module's exports into a promise, which Grafana's loader does not resolve.
void initPluginTranslations(pluginJson.id, [loadResources]);

export const plugin = new DataSourcePlugin<MillraceDatasource, MillraceQuery, MillraceOptions, MillraceSecureOptions>(
  MillraceDatasource
)
  .setQueryEditor(QueryEditor)
  .setConfigEditor(ConfigEditor)
  .setQueryEditorHelp(PromCheatSheet);
