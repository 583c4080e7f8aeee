import { PromOptions, PromQuery } from '@grafana/prometheus';

/** Which part of the store answers a query: everything, only what no bucket block holds yet, or only the bucket. */
export type Layer = 'merged' | 'speed' | 'batch';

export const DEFAULT_LAYER: Layer = 'merged';

export interface MillraceQuery extends PromQuery {
  /** Absent means merged, so that queries of the Prometheus datasource are valid as they are. */
  layer?: Layer;
}

/** An empty URL in the datasource's settings means the engine inside the plugin; any other, a `millrace serve`. */
export type MillraceOptions = PromOptions;

export interface MillraceSecureOptions {
  basicAuthPassword?: string;
}
