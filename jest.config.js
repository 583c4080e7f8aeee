// Tests give the same answers in every time zone.
process.env.TZ = 'UTC';

const { grafanaESModules, nodeModulesToTransform } = require('./.config/jest/utils');
const base = require('./.config/jest.config');

module.exports = {
  ...base,
  // Machines that build at the same time are slow, and a slow test is not a wrong one.
  testTimeout: 60000,
  // Some packages ship .mjs only; they take the same way as everything else.
  transform: { '^.+\\.mjs$': Object.values(base.transform)[0], ...base.transform },
  // Packages that are published as ES modules only, or mix both.
  transformIgnorePatterns: [
    nodeModulesToTransform([...grafanaESModules, '@grafana/plugin-ui', '@marcbachmann/cel-js', 'monaco-promql']),
  ],
};
