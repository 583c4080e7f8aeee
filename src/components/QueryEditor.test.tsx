import React, { useState } from 'react';
import { render, screen } from '@testing-library/react';
import userEvent from '@testing-library/user-event';
import { CoreApp } from '@grafana/data';

import { datasource } from '../testing';
import { MillraceQuery } from '../types';
import { QueryEditor, withLayer } from './QueryEditor';

jest.mock('@grafana/prometheus', () => ({
  ...jest.requireActual('@grafana/prometheus'),
  // The real one loads an editor that needs a browser; what matters here is that it is there and gets the query.
  PromQueryEditorByApp: ({ query }: { query: MillraceQuery }) => <div data-testid="promql">{query.expr}</div>,
}));

describe('QueryEditor', () => {
  it('shows the PromQL editor and, for a query that names no layer, the merged one', () => {
    setup({ refId: 'A', expr: 'up' });

    expect(screen.getByTestId('promql')).toHaveTextContent('up');
    expect(screen.getByRole('radio', { name: 'Merged' })).toBeChecked();
  });

  it('shows the layer of the query', () => {
    setup({ refId: 'A', expr: 'up', layer: 'batch' });

    expect(screen.getByRole('radio', { name: 'Batch' })).toBeChecked();
  });

  it('stores a choice and runs the query', async () => {
    const { changes, onRunQuery } = setup({ refId: 'A', expr: 'up', legendFormat: 'x' });

    await choose('Speed');
    expect(changes).toEqual([{ refId: 'A', expr: 'up', legendFormat: 'x', layer: 'speed' }]);
    expect(onRunQuery).toHaveBeenCalledTimes(1);
  });

  it('stores nothing for the default', async () => {
    const { changes } = setup({ refId: 'A', expr: 'up', layer: 'speed' });

    await choose('Merged');
    expect(changes).toEqual([{ refId: 'A', expr: 'up' }]);
  });

  it('offers no choice where Grafana hands the rule to another system', () => {
    setup({ refId: 'A', expr: 'up' }, CoreApp.CloudAlerting);

    expect(screen.queryByRole('radiogroup', { name: 'Layer' })).not.toBeInTheDocument();
  });
});

test('withLayer leaves the query that it got alone', () => {
  const query: MillraceQuery = { refId: 'A', expr: 'up', layer: 'speed' };

  expect(withLayer(query, 'merged')).toEqual({ refId: 'A', expr: 'up' });
  expect(query.layer).toBe('speed');
});

async function choose(layer: string) {
  await userEvent.click(screen.getByRole('radio', { name: layer }));
}

function setup(initial: MillraceQuery, app = CoreApp.Explore) {
  const changes: MillraceQuery[] = [];
  const onRunQuery = jest.fn();

  function Host() {
    const [query, setQuery] = useState(initial);
    return (
      <QueryEditor
        app={app}
        datasource={datasource().ds}
        query={query}
        onRunQuery={onRunQuery}
        onChange={(next) => {
          changes.push(next);
          setQuery(next);
        }}
      />
    );
  }
  render(<Host />);
  return { changes, onRunQuery };
}
