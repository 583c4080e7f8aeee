import React, { useId } from 'react';
import { SelectableValue } from '@grafana/data';
import {
  AdvancedHttpSettings,
  Auth,
  AuthMethod,
  ConfigSection,
  ConnectionSettings,
  convertLegacyAuthProps,
} from '@grafana/plugin-ui';
import { Box, Field, RadioButtonGroup, SecureSocksProxySettings } from '@grafana/ui';
import { config } from '@grafana/runtime';

import { Mode } from '../types';
import { Props } from './ConfigEditor';
import { RemoteWriteHelp } from './RemoteWriteHelp';

const MODES: Array<SelectableValue<Mode>> = [
  { value: 'embedded', label: 'In this plugin', description: 'Grafana itself keeps the samples' },
  { value: 'remote', label: 'In a server', description: 'A `millrace serve` elsewhere keeps them' },
];

export function EngineSettings(props: Props) {
  const { options, onOptionsChange } = props;
  const id = useId();
  const mode = options.jsonData.mode ?? (options.url ? 'remote' : 'embedded');

  return (
    <ConfigSection title="Engine">
      <Field
        label="Where the engine runs"
        description="Inside the plugin it starts and stops with Grafana. Several Grafana instances share one server instead."
        disabled={options.readOnly}
        htmlFor={id}
        noMargin
      >
        <RadioButtonGroup
          id={id}
          aria-label="Where the engine runs"
          options={MODES}
          value={mode}
          onChange={(mode) => onOptionsChange({ ...options, jsonData: { ...options.jsonData, mode } })}
          disabled={options.readOnly}
        />
      </Field>
      {mode === 'embedded' ? <RemoteWriteHelp uid={options.uid} /> : <RemoteSettings {...props} />}
    </ConfigSection>
  );
}

function RemoteSettings({ options, onOptionsChange }: Props) {
  const auth = convertLegacyAuthProps({ config: options, onChange: onOptionsChange });

  return (
    <Box marginTop={3} display="flex" direction="column" gap={2}>
      <ConnectionSettings
        config={options}
        onChange={onOptionsChange}
        urlLabel="Server URL"
        urlPlaceholder="http://millrace:9393"
        urlTooltip="Address of a millrace serve, as Grafana's server reaches it"
      />
      <Auth
        {...auth}
        visibleMethods={[AuthMethod.NoAuth, AuthMethod.BasicAuth, AuthMethod.OAuthForward]}
        onAuthMethodSelect={(method) =>
          onOptionsChange({
            ...options,
            basicAuth: method === AuthMethod.BasicAuth,
            withCredentials: false,
            jsonData: { ...options.jsonData, oauthPassThru: method === AuthMethod.OAuthForward },
          })
        }
      />
      <AdvancedHttpSettings config={options} onChange={onOptionsChange} />
      {config.secureSocksDSProxyEnabled && (
        <SecureSocksProxySettings options={options} onOptionsChange={onOptionsChange} />
      )}
    </Box>
  );
}
