import React from 'react';
import { css } from '@emotion/css';
import { GrafanaTheme2 } from '@grafana/data';
import { config } from '@grafana/runtime';
import { Box, ClipboardButton, Text, useStyles2 } from '@grafana/ui';

/** Two ways for samples to come in, as Prometheus's configuration has them. */
export function RemoteWriteHelp({ uid }: { uid: string }) {
  const appUrl = config.appUrl.replace(/\/*$/, '/');

  return (
    <Box marginTop={3} display="flex" direction="column" gap={2}>
      <Snippet
        title="Send samples to the engine's own listener"
        text="The address is web_listen_address in grafana.ini, section [plugin.millrace-metrics-datasource]; this is its default. Other machines reach it only if it is set to an address of the network, with web_config_file for TLS and passwords."
        code={`remote_write:
  - url: http://127.0.0.1:9393/api/v1/write
`}
      />
      <Snippet
        title="Or send them through Grafana"
        text="No further port is needed. The token belongs to a service account with the role Editor or Admin. For real load take the listener."
        code={`remote_write:
  - url: ${appUrl}api/datasources/uid/${uid}/resources/api/v1/write
    authorization:
      credentials: <token of a service account>
`}
      />
    </Box>
  );
}

function Snippet({ title, text, code }: { title: string; text: string; code: string }) {
  const styles = useStyles2(getStyles);
  return (
    <Box>
      <Text element="h5">{title}</Text>
      <Text element="p" color="secondary">
        {text}
      </Text>
      <div className={styles.code}>
        <pre aria-label={title}>{code}</pre>
        <ClipboardButton
          className={styles.copy}
          aria-label={`Copy: ${title}`}
          icon="copy"
          size="sm"
          fill="text"
          getText={() => code}
        />
      </div>
    </Box>
  );
}

const getStyles = (theme: GrafanaTheme2) => ({
  code: css({ position: 'relative', marginTop: theme.spacing(1), maxWidth: 900 }),
  copy: css({ position: 'absolute', top: theme.spacing(1), right: theme.spacing(1) }),
});
