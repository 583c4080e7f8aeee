import { DataQuery, DataSourceRef } from '@grafana/schema';
import { DataSourceApi, DataSourceInstanceSettings, hasQueryExportSupport } from '@grafana/data';
import { PrometheusDatasource, PrometheusLanguageProviderInterface } from '@grafana/prometheus';
import { getTemplateSrv, TemplateSrv } from '@grafana/runtime';

import pluginJson from './plugin.json';
import { MillraceOptions, MillraceQuery } from './types';

/** Datasources whose queries are PromQL in the shape of ours, so that a panel may switch to Millrace unchanged. */
const PROMQL_PLUGINS = new Set([
  'prometheus',
  'grafana-amazonprometheus-datasource',
  'grafana-azureprometheus-datasource',
]);

/**
 * Grafana prefers importFromAbstractQueries, which keeps only the label matchers of a query, to importQueries wherever
 * the former exists on the prototype chain. It has to be taken away there for PromQL to survive a change of datasource;
 * the class is this plugin's own copy.
 */
const importAbstract = PrometheusDatasource.prototype.importFromAbstractQueries;
Reflect.deleteProperty(PrometheusDatasource.prototype, 'importFromAbstractQueries');

/**
 * The Prometheus datasource, pointed at the Millrace backend. `type` stays 'prometheus', which the query builder asks
 * for; only the reference that is written into dashboards names this plugin.
 */
export class MillraceDatasource extends PrometheusDatasource {
  constructor(
    instanceSettings: DataSourceInstanceSettings<MillraceOptions>,
    templateSrv: TemplateSrv = getTemplateSrv(),
    languageProvider?: PrometheusLanguageProviderInterface
  ) {
    super(instanceSettings, templateSrv, languageProvider);

    // The incremental query cache knows nothing of layers nor of late samples: it would keep answers that have changed.
    this.hasIncrementalQuery = false;
    if (!instanceSettings.jsonData.httpMethod) {
      this.httpMethod = 'POST';
    }
  }

  getRef(): DataSourceRef {
    return { type: pluginJson.id, uid: this.uid };
  }

  async importQueries(queries: DataQuery[], origin: DataSourceApi): Promise<MillraceQuery[]> {
    if (PROMQL_PLUGINS.has(origin.meta.id)) {
      return queries.filter(isPromQuery).map((query) => ({ ...query }));
    }
    if (hasQueryExportSupport(origin)) {
      return importAbstract.call(this, await origin.exportToAbstractQueries(queries));
    }
    return [];
  }
}

function isPromQuery(query: DataQuery): query is MillraceQuery {
  return 'expr' in query && typeof query.expr === 'string';
}
