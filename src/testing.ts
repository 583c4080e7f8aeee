import { of } from 'rxjs';
import { DataSourceInstanceSettings, DataSourceSettings } from '@grafana/data';
import { PrometheusLanguageProviderInterface } from '@grafana/prometheus';
import { BackendSrv, BackendSrvRequest, setBackendSrv, setTemplateSrv, TemplateSrv } from '@grafana/runtime';

import { MillraceDatasource } from './datasource';
import pluginJson from './plugin.json';
import { MillraceOptions, MillraceSecureOptions } from './types';

/** Settings as the config page gets them. */
export function settings(
  change: Partial<DataSourceSettings<MillraceOptions, MillraceSecureOptions>> = {}
): DataSourceSettings<MillraceOptions, MillraceSecureOptions> {
  return {
    id: 1,
    uid: 'millrace',
    orgId: 1,
    name: 'Millrace',
    typeLogoUrl: '',
    type: pluginJson.id,
    typeName: 'Millrace',
    access: 'proxy',
    url: '',
    user: '',
    database: '',
    basicAuth: false,
    basicAuthUser: '',
    isDefault: false,
    jsonData: {},
    secureJsonFields: {},
    readOnly: false,
    withCredentials: false,
    ...change,
  };
}

/** A datasource whose requests go to the returned list instead of to Grafana. */
export function datasource(jsonData: MillraceOptions = {}) {
  const requests: BackendSrvRequest[] = [];
  const backendSrv = {
    fetch: (request: BackendSrvRequest) => {
      requests.push(request);
      return of({ data: { results: {} }, status: 200, ok: true });
    },
  } as unknown as BackendSrv;
  const templateSrv = {
    replace: (value?: string) => value ?? '',
    getVariables: () => [],
    containsTemplate: () => false,
  } as unknown as TemplateSrv;
  setBackendSrv(backendSrv);
  setTemplateSrv(templateSrv);

  const instance = {
    id: 1,
    uid: 'millrace',
    name: 'Millrace',
    type: pluginJson.id,
    meta: pluginJson,
    access: 'proxy',
    url: '/api/datasources/proxy/uid/millrace',
    readOnly: false,
    jsonData,
  } as unknown as DataSourceInstanceSettings<MillraceOptions>;
  const languageProvider = {
    start: () => Promise.resolve([]),
    retrieveHistogramMetrics: () => [],
    retrieveMetrics: () => [],
    retrieveMetricsMetadata: () => ({}),
    retrieveLabelKeys: () => [],
    queryLabelKeys: () => Promise.resolve([]),
    queryLabelValues: () => Promise.resolve([]),
    queryMetricsMetadata: () => Promise.resolve({}),
  } as unknown as PrometheusLanguageProviderInterface;

  return { ds: new MillraceDatasource(instance, undefined, languageProvider), requests };
}
