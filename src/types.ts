import { PromOptions, PromQuery } from '@grafana/prometheus';

/** Which part of the store answers a query: everything, only what no bucket block holds yet, or only the bucket. */
export type Layer = 'merged' | 'speed' | 'batch';

export const DEFAULT_LAYER: Layer = 'merged';

export interface MillraceQuery extends PromQuery {
  /** Absent means merged, so that queries of the Prometheus datasource are valid as they are. */
  layer?: Layer;
}

export type Mode = 'embedded' | 'remote';

export interface MillraceOptions extends PromOptions {
  /** Embedded is the engine inside the plugin, remote a `millrace serve` at the URL. Where it is absent, the URL decides. */
  mode?: Mode;
}

export interface MillraceSecureOptions {
  basicAuthPassword?: string;
}
