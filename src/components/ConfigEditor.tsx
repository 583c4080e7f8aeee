import React from 'react';
import { DataSourcePluginOptionsEditorProps } from '@grafana/data';
import { ConfigSection, DataSourceDescription } from '@grafana/plugin-ui';
import { ExemplarsSettings } from '@grafana/prometheus';
import { Box, Divider, Stack } from '@grafana/ui';

import { MillraceOptions, MillraceSecureOptions } from '../types';
import { EngineSettings } from './EngineSettings';
import { QuerySettings } from './QuerySettings';

export type Props = DataSourcePluginOptionsEditorProps<MillraceOptions, MillraceSecureOptions>;

const DOCS = 'https://github.com/millrace/millrace/blob/main/docs/install.md';

/** What is set here belongs to one datasource; the embedded engine itself is configured in grafana.ini. */
export function ConfigEditor(props: Props) {
  const { options, onOptionsChange } = props;

  return (
    <Stack direction="column" gap={1}>
      <DataSourceDescription dataSourceName="Millrace" docsLink={DOCS} hasRequiredFields={false} />
      <Divider />
      <EngineSettings {...props} />
      <Divider />
      <ConfigSection title="Queries">
        <QuerySettings {...props} />
        <Box marginTop={3}>
          <ExemplarsSettings
            options={options.jsonData.exemplarTraceIdDestinations}
            onChange={(exemplarTraceIdDestinations) =>
              onOptionsChange({ ...options, jsonData: { ...options.jsonData, exemplarTraceIdDestinations } })
            }
            disabled={options.readOnly}
          />
        </Box>
      </ConfigSection>
    </Stack>
  );
}
