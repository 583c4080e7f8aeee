import React from 'react';
import { SelectableValue } from '@grafana/data';
import { RadioButtonGroup } from '@grafana/ui';

import { DEFAULT_LAYER, Layer } from '../types';

const OPTIONS: Array<SelectableValue<Layer>> = [
  { value: 'merged', label: 'Merged', description: 'Both layers in one answer' },
  { value: 'speed', label: 'Speed', description: 'What is not in the bucket yet' },
  { value: 'batch', label: 'Batch', description: 'What is in the bucket' },
];

interface Props {
  id: string;
  layer?: Layer;
  onChange: (layer: Layer) => void;
}

export function LayerSelect({ id, layer, onChange }: Props) {
  return (
    <RadioButtonGroup id={id} aria-label="Layer" options={OPTIONS} value={layer ?? DEFAULT_LAYER} onChange={onChange} />
  );
}
