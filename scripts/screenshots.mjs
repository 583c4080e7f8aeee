// Takes the screenshots of the documentation from a running Grafana that is provisioned from provisioning/.
//
//   node scripts/screenshots.mjs [--url=http://127.0.0.1:3000] [--user=admin] [--password=admin] [--uid=millrace]
//                                [--expr='...'] [--out=docs/img] [--chromium=/usr/bin/chromium] [--only=explore,config]
//
// It ends with an error when a page shows none of what it should.
import { mkdir } from 'node:fs/promises';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { chromium } from 'playwright-core';

const { values: args } = parseArgs({
  options: {
    url: { type: 'string', default: process.env.GRAFANA_URL ?? 'http://127.0.0.1:3000' },
    user: { type: 'string', default: 'admin' },
    password: { type: 'string', default: 'admin' },
    uid: { type: 'string', default: 'millrace' },
    expr: { type: 'string', default: 'sum by (type) (rate(millrace_ingest_samples_total[1m]))' },
    out: { type: 'string', default: 'docs/img' },
    chromium: { type: 'string', default: process.env.CHROMIUM ?? '/usr/bin/chromium' },
    only: { type: 'string', default: 'explore,builder,config,dashboard,alert' },
  },
});
const base = args.url.replace(/\/+$/, '');

const FLAGS = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];

const PAGES = {
  async explore(page) {
    await page.goto(explore({ expr: args.expr, editorMode: 'code' }));
    await page.getByRole('radiogroup', { name: 'Layer' }).waitFor();
    await drawn(page);
  },
  async builder(page) {
    await page.goto(explore({ expr: 'up{job="millrace"}', editorMode: 'builder' }));
    await page.getByRole('radiogroup', { name: 'Layer' }).waitFor();
    await page.getByText('Label filters', { exact: true }).waitFor();
    await drawn(page);
  },
  async config(page) {
    await page.setViewportSize({ width: 1440, height: 1640 });
    await page.goto(`${base}/connections/datasources/edit/${args.uid}`);
    await page.getByText("Send samples to the engine's own listener").waitFor();
    await page.getByRole('button', { name: /^(Save & test|Test)$/ }).click();
    await page.getByTestId('data-testid Alert success').waitFor();
  },
  async dashboard(page) {
    await page.goto(`${base}/d/millrace-overview?from=now-15m&to=now`);
    await page.getByText('Newest sample').first().waitFor();
    await drawn(page);
  },
  async alert(page) {
    await page.goto(`${base}/alerting/grafana/millrace-receives-samples/view`);
    await page.getByText('Firing', { exact: true }).first().waitFor();
  },
};

const browser = await chromium.launch({ executablePath: args.chromium, args: FLAGS });
try {
  const context = await browser.newContext({ viewport: { width: 1440, height: 1000 }, colorScheme: 'dark' });
  const login = await context.request.post(`${base}/login`, { data: { user: args.user, password: args.password } });
  if (!login.ok()) {
    throw new Error(`log in to ${base}: ${login.status()} ${await login.text()}`);
  }
  // Without the menu, pages have room for what they are about.
  await context.addInitScript(() => localStorage.setItem('grafana.navigation.docked', 'false'));
  await mkdir(args.out, { recursive: true });
  for (const name of args.only.split(',')) {
    await shoot(context, name);
  }
} finally {
  await browser.close();
}

async function shoot(context, name) {
  const page = await context.newPage();
  const errors = [];
  page.on('pageerror', (error) => errors.push(error.message));
  try {
    await PAGES[name](page);
    // What has arrived is not yet painted, and Grafana fades things in.
    await page.waitForTimeout(1500);
  } finally {
    const file = path.join(args.out, `${name}.png`);
    await page.screenshot({ path: file });
    console.log(file);
    await page.close();
  }
  if (errors.length > 0) {
    throw new Error(`${name}: errors in the page: ${errors.join('; ')}`);
  }
}

/** The address of Explore with one query. */
function explore(query) {
  const datasource = { type: 'millrace-metrics-datasource', uid: args.uid };
  const pane = {
    datasource: args.uid,
    queries: [{ refId: 'A', datasource, legendFormat: '__auto', range: true, instant: false, ...query }],
    range: { from: 'now-15m', to: 'now' },
  };
  return `${base}/explore?schemaVersion=1&orgId=1&panes=${encodeURIComponent(JSON.stringify({ a: pane }))}`;
}

/** Waits until a graph is on the page and no panel is loading. */
async function drawn(page) {
  await page.locator('.uplot canvas').first().waitFor();
  await page.waitForFunction(() => document.querySelectorAll('[aria-label="Panel loading bar"]').length === 0);
}
