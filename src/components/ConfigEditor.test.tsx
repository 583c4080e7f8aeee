import React, { useState } from 'react';
import { render, screen } from '@testing-library/react';
import userEvent from '@testing-library/user-event';
import { config } from '@grafana/runtime';

import { settings } from '../testing';
import { ConfigEditor } from './ConfigEditor';
import { isDuration } from './QuerySettings';

beforeAll(() => {
  config.appUrl = 'https://grafana.example.org/sub/';
});

describe('ConfigEditor', () => {
  it('says where to send samples while the engine is in the plugin, which is the default', () => {
    setup();

    expect(screen.getByRole('radio', { name: 'In this plugin' })).toBeChecked();
    expect(screen.getByLabelText("Send samples to the engine's own listener")).toHaveTextContent(
      'url: http://127.0.0.1:9393/api/v1/write'
    );
    expect(screen.getByLabelText('Or send them through Grafana')).toHaveTextContent(
      'url: https://grafana.example.org/sub/api/datasources/uid/millrace/resources/api/v1/write'
    );
    expect(screen.queryByText('Server URL')).not.toBeInTheDocument();
  });

  it('asks for the address and the credentials of a server', async () => {
    const { last } = setup();

    await userEvent.click(screen.getByRole('radio', { name: 'In a server' }));
    await userEvent.type(screen.getByPlaceholderText('http://millrace:9393'), 'http://m:1');

    expect(last()).toMatchObject({ url: 'http://m:1', jsonData: { mode: 'remote' } });
    expect(screen.getByText('Authentication')).toBeInTheDocument();
    expect(screen.queryByLabelText('Or send them through Grafana')).not.toBeInTheDocument();
  });

  it('goes by the URL where nothing else is said, and keeps it when the engine goes into the plugin', async () => {
    const { last } = setup({ url: 'http://millrace:9393' });
    expect(screen.getByRole('radio', { name: 'In a server' })).toBeChecked();

    await userEvent.click(screen.getByRole('radio', { name: 'In this plugin' }));
    expect(last()).toMatchObject({ url: 'http://millrace:9393', jsonData: { mode: 'embedded' } });
    expect(screen.queryByText('Authentication')).not.toBeInTheDocument();

    await userEvent.click(screen.getByRole('radio', { name: 'In a server' }));
    expect(last().jsonData.mode).toBe('remote');
    expect(screen.getByPlaceholderText('http://millrace:9393')).toHaveValue('http://millrace:9393');
  });

  it.each([
    ['Scrape interval', 'timeInterval' as const],
    ['Query timeout', 'queryTimeout' as const],
  ])('stores the %s and says when it is no duration', async (label, key) => {
    const { last } = setup();
    const field = screen.getByLabelText(new RegExp(`^${label}`));

    await userEvent.type(field, '30');
    expect(screen.getByRole('alert')).toHaveTextContent('A duration is written like 15s or 1m30s');

    await userEvent.type(field, 's');
    expect(screen.queryByRole('alert')).not.toBeInTheDocument();
    expect(last().jsonData[key]).toBe('30s');

    await userEvent.clear(field);
    expect(last().jsonData[key]).toBeUndefined();
  });

  it('shows POST and the builder unless something else is set, and stores what is chosen', async () => {
    const { last } = setup();
    expect(screen.getByRole('radio', { name: 'POST' })).toBeChecked();
    expect(screen.getByRole('radio', { name: 'Builder' })).toBeChecked();

    await userEvent.click(screen.getByRole('radio', { name: 'GET' }));
    await userEvent.click(screen.getByRole('radio', { name: 'Code' }));
    expect(last().jsonData).toMatchObject({ httpMethod: 'GET', defaultEditor: 'code' });
  });

  it('cannot be changed where it is provisioned', () => {
    setup({ readOnly: true });

    for (const radio of screen.getAllByRole('radio')) {
      expect(radio).toBeDisabled();
    }
    expect(screen.getByLabelText(/^Scrape interval/)).toBeDisabled();
  });
});

test.each([
  ['15s', true],
  ['1m30s', true],
  ['100ms', true],
  ['2w', true],
  ['1y', true],
  ['1y2w', false],
  ['$__interval', false],
  ['0s', false],
  ['', false],
  ['15', false],
  ['1.5m', false],
  ['30s1m', false],
  ['-1m', false],
  ['15s ', false],
])('isDuration(%j) is %s', (value, want) => {
  expect(isDuration(value)).toBe(want);
});

function setup(change = {}) {
  const states = [settings(change)];
  const last = () => states[states.length - 1];

  function Host() {
    const [options, setOptions] = useState(last());
    return (
      <ConfigEditor
        options={options}
        onOptionsChange={(next) => {
          states.push(next);
          setOptions(next);
        }}
      />
    );
  }
  render(<Host />);
  return { last };
}
