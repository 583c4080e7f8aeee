import React, { useId } from 'react';
import { SelectableValue } from '@grafana/data';
import { Field, Input, RadioButtonGroup, Stack } from '@grafana/ui';

import { MillraceOptions } from '../types';
import { Props } from './ConfigEditor';

type Editor = NonNullable<MillraceOptions['defaultEditor']>;

const METHODS: Array<SelectableValue<'POST' | 'GET'>> = [
  { value: 'POST', label: 'POST', description: 'Expressions may be of any length' },
  { value: 'GET', label: 'GET', description: 'For a proxy in between that caches, or refuses POST' },
];

/** A duration as the back end reads it: one of the long units alone, or shorter ones from long to short. */
const DURATION = /^(\d+[dwy]|(?=\d)(\d+h)?(\d+m)?(\d+s)?(\d+ms)?)$/;

export function QuerySettings({ options, onOptionsChange }: Props) {
  const id = useId();
  const { jsonData, readOnly } = options;
  const set = (change: Partial<MillraceOptions>) =>
    onOptionsChange({ ...options, jsonData: { ...jsonData, ...change } });

  return (
    <Stack direction="column" gap={2}>
      <DurationField
        id={`${id}-interval`}
        label="Scrape interval"
        description="How often samples arrive, usually. No panel asks for a finer step, and $__rate_interval covers four of them."
        placeholder="15s"
        value={jsonData.timeInterval}
        onChange={(timeInterval) => set({ timeInterval })}
        disabled={readOnly}
      />
      <DurationField
        id={`${id}-timeout`}
        label="Query timeout"
        description="A query that takes longer is ended. The engine's own limit (--query.timeout) counts too."
        placeholder="2m"
        value={jsonData.queryTimeout}
        onChange={(queryTimeout) => set({ queryTimeout })}
        disabled={readOnly}
      />
      <Field
        label="HTTP method"
        description="How labels, series and, in a server, queries are asked for."
        disabled={readOnly}
        htmlFor={`${id}-method`}
        noMargin
      >
        <RadioButtonGroup
          id={`${id}-method`}
          aria-label="HTTP method"
          options={METHODS}
          value={jsonData.httpMethod === 'GET' ? 'GET' : 'POST'}
          onChange={(httpMethod) => set({ httpMethod })}
          disabled={readOnly}
        />
      </Field>
      <Field
        label="Default editor"
        description="What an empty query opens with."
        disabled={readOnly}
        htmlFor={`${id}-editor`}
        noMargin
      >
        <RadioButtonGroup
          id={`${id}-editor`}
          aria-label="Default editor"
          options={EDITORS}
          value={jsonData.defaultEditor ?? EDITORS[0].value}
          onChange={(defaultEditor) => set({ defaultEditor })}
          disabled={readOnly}
        />
      </Field>
    </Stack>
  );
}

// The enum behind these is exported by the library as a type only.
const EDITORS: Array<SelectableValue<Editor>> = (['builder', 'code'] as Editor[]).map((value) => ({
  value,
  label: value === 'code' ? 'Code' : 'Builder',
}));

interface DurationFieldProps {
  id: string;
  label: string;
  description: string;
  placeholder: string;
  value?: string;
  onChange: (value: string | undefined) => void;
  disabled?: boolean;
}

function DurationField({ id, label, description, placeholder, value, onChange, disabled }: DurationFieldProps) {
  const invalid = Boolean(value) && !isDuration(value!);
  return (
    <Field
      label={label}
      description={description}
      invalid={invalid}
      error="A duration is written like 15s or 1m30s"
      disabled={disabled}
      htmlFor={id}
      noMargin
    >
      <Input
        id={id}
        width={40}
        placeholder={placeholder}
        spellCheck={false}
        value={value ?? ''}
        onChange={(event) => onChange(event.currentTarget.value.trim() || undefined)}
      />
    </Field>
  );
}

export function isDuration(value: string): boolean {
  return DURATION.test(value) && /[1-9]/.test(value);
}
