import { lastValueFrom } from 'rxjs';
import { CoreApp, DataQueryRequest, dateTime, hasQueryImportSupport } from '@grafana/data';

import { MillraceDatasource } from './datasource';
import { datasource } from './testing';
import { MillraceQuery } from './types';

describe('MillraceDatasource', () => {
  it('names this plugin in references, and stays a Prometheus to the query builder', () => {
    const { ds } = datasource();

    expect(ds.getRef()).toEqual({ type: 'millrace-metrics-datasource', uid: 'millrace' });
    expect(ds.type).toBe('prometheus');
  });

  it('takes one argument, as Grafana asks of a datasource', () => {
    expect(MillraceDatasource.length).toBe(1);
  });

  it('never queries incrementally, whatever the settings say', () => {
    expect(datasource({ incrementalQuerying: true }).ds.hasIncrementalQuery).toBe(false);
  });

  it.each([
    [undefined, 'POST'],
    ['POST', 'POST'],
    ['GET', 'GET'],
  ])('asks with the method set (%s → %s)', (httpMethod, want) => {
    expect(datasource({ httpMethod }).ds.httpMethod).toBe(want);
  });

  describe('query', () => {
    it.each([
      ['speed' as const, 'speed'],
      ['batch' as const, 'batch'],
      [undefined, undefined],
    ])('hands the layer %s to the back end', async (layer, want) => {
      const sent = await send({ refId: 'A', expr: 'up', range: true, layer });

      expect(sent).toHaveLength(1);
      expect(sent[0]).toMatchObject({
        refId: 'A',
        expr: 'up',
        datasource: { type: 'millrace-metrics-datasource', uid: 'millrace' },
      });
      expect(sent[0].layer).toBe(want);
    });

    it('hands it on with both queries where range and instant are asked for', async () => {
      const sent = await send({ refId: 'A', expr: 'up', range: true, instant: true, layer: 'batch' });

      expect(sent.map((query) => [query.refId, query.layer])).toEqual([
        ['A', 'batch'],
        ['A-Instant', 'batch'],
      ]);
    });

    it('leaves out hidden and empty queries', async () => {
      expect(await send({ refId: 'A', expr: '', range: true })).toEqual([]);
      expect(await send({ refId: 'A', expr: 'up', hide: true })).toEqual([]);
    });
  });

  it('keeps the layer when variables are interpolated', () => {
    const { ds } = datasource();
    const query: MillraceQuery = { refId: 'A', expr: 'up', layer: 'speed' };

    expect(ds.applyTemplateVariables(query, {})).toMatchObject({ layer: 'speed' });
    expect(ds.interpolateVariablesInQueries([query], {})[0]).toMatchObject({
      layer: 'speed',
      datasource: { type: 'millrace-metrics-datasource' },
    });
  });

  it('asks for metadata through its own resources', async () => {
    const { ds, requests } = datasource();
    await ds.metadataRequest('/api/v1/metadata');

    expect(requests[0].url).toBe('/api/datasources/uid/millrace/resources/api/v1/metadata');
  });

  describe('importQueries', () => {
    it('is what Grafana calls, so that no part of an expression is lost', () => {
      expect(hasQueryImportSupport(datasource().ds)).toBe(false);
    });

    it('takes the queries of the Prometheus datasource as they are', async () => {
      const query = { refId: 'A', expr: 'sum by (job) (rate(http_requests_total[5m]))', legendFormat: '{{job}}' };

      expect(await importFrom('prometheus', [query])).toEqual([query]);
    });

    it('takes the label matchers of any other that exports them', async () => {
      const exportToAbstractQueries = () =>
        Promise.resolve([{ refId: 'A', labelMatchers: [{ name: 'job', value: 'api', operator: 'Equal' }] }]);

      expect(await importFrom('loki', [{ refId: 'A' }], { exportToAbstractQueries })).toEqual([
        expect.objectContaining({ refId: 'A', expr: '{job="api"}' }),
      ]);
    });

    it('takes nothing from a datasource that has nothing to give', async () => {
      expect(await importFrom('csv', [{ refId: 'A' }])).toEqual([]);
    });
  });
});

async function send(query: MillraceQuery): Promise<MillraceQuery[]> {
  const { ds, requests } = datasource();
  const to = dateTime('2026-01-01T12:00:00Z');
  const from = dateTime('2026-01-01T11:00:00Z');
  const request: DataQueryRequest<MillraceQuery> = {
    app: CoreApp.Explore,
    requestId: '1',
    interval: '15s',
    intervalMs: 15000,
    maxDataPoints: 1000,
    range: { from, to, raw: { from: 'now-1h', to: 'now' } },
    scopedVars: {},
    startTime: 0,
    timezone: 'utc',
    targets: [query].filter((target) => ds.filterQuery(target)),
  };
  await lastValueFrom(ds.query(request), { defaultValue: undefined });
  return requests.flatMap((sent) => sent.data.queries);
}

function importFrom(id: string, queries: Array<Partial<MillraceQuery> & { refId: string }>, methods = {}) {
  // eslint-disable-next-line @typescript-eslint/no-deprecated -- the only way by which whole queries come
  return datasource().ds.importQueries(queries, { meta: { id }, ...methods } as never);
}
