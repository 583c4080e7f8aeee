import React from 'react';
import { Combobox, ComboboxOption } from '@grafana/ui';

import { DEFAULT_LAYER, Layer } from '../types';

const OPTIONS: Array<ComboboxOption<Layer>> = [
  { value: 'merged', label: 'Merged', description: 'Everything: the speed and the batch layer in one answer' },
  { value: 'speed', label: 'Speed', description: 'Only what the bucket does not hold yet' },
  { value: 'batch', label: 'Batch', description: 'Only what the bucket holds' },
];

interface Props {
  id: string;
  layer?: Layer;
  onChange: (layer: Layer) => void;
}

export function LayerSelect({ id, layer, onChange }: Props) {
  return (
    <Combobox
      id={id}
      aria-label="Layer"
      options={OPTIONS}
      value={layer ?? DEFAULT_LAYER}
      onChange={(option) => onChange(option.value)}
      width={20}
    />
  );
}
