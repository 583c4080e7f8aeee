import React, { useCallback, useId } from 'react';
import { CoreApp, QueryEditorProps } from '@grafana/data';
import { PromQueryEditorByApp } from '@grafana/prometheus';
import { Box, InlineField } from '@grafana/ui';

import { MillraceDatasource } from '../datasource';
import { DEFAULT_LAYER, Layer, MillraceOptions, MillraceQuery } from '../types';
import { LayerSelect } from './LayerSelect';

export type Props = QueryEditorProps<MillraceDatasource, MillraceQuery, MillraceOptions>;

/** The Prometheus query editor with a choice of the layer below it. */
export function QueryEditor(props: Props) {
  const { query, onChange, onRunQuery, app } = props;
  const id = useId();

  const onLayerChange = useCallback(
    (layer: Layer) => {
      onChange(withLayer(query, layer));
      onRunQuery();
    },
    [query, onChange, onRunQuery]
  );

  return (
    <>
      <PromQueryEditorByApp {...props} />
      {app !== CoreApp.CloudAlerting && (
        <Box marginTop={0.5}>
          <InlineField
            label="Layer"
            htmlFor={id}
            labelWidth={10}
            tooltip="Which part of the store answers. Merged is what dashboards and alerts want; the others show what each layer holds."
          >
            <LayerSelect id={id} layer={query.layer} onChange={onLayerChange} />
          </InlineField>
        </Box>
      )}
    </>
  );
}

/** The default is not stored, so that the query stays valid in the Prometheus datasource too. */
export function withLayer(query: MillraceQuery, layer: Layer): MillraceQuery {
  const { layer: _, ...rest } = query;
  return layer === DEFAULT_LAYER ? rest : { ...rest, layer };
}
