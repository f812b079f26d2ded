"""Style sheet of the page: light or dark as the reader prefers, one column on a phone."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --back: #f7f7f5; --card: #fff; --ink: #1d1f22; --soft: #5d646d;
  --line: #dfe2e6;
  --good: #1f7a4d; --bad: #b3261e; --bad-back: #fdeceb; --c-in: #c9711a; --c-out: #1766b5;
  --c-ref: #8a9099;
  --c-ink: #4a5058; --c-grid: #e2e5e9; --c-bad: #b3261e; --c-red: #c23b32; --c-green: #2f8a4b;
  --c-blue: #2b62c4; }
@media (prefers-color-scheme: dark) { :root { --back: #141618; --card: #1d2023; --ink: #e8eaed;
  --soft: #a3abb5;
  --line: #32373d; --good: #62c48f; --bad: #ff8a80; --bad-back: #3a2220; --c-in: #f0a04b;
  --c-out: #6ab0f5;
  --c-ref: #8f97a1; --c-ink: #b7bec7; --c-grid: #32373d; --c-bad: #ff8a80; --c-red: #ff7b72;
  --c-green: #6fcf87;
  --c-blue: #7aa7ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 16px; max-width: 1100px; background: var(--back); color: var(--ink);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
header p, section > p, footer, small { color: var(--soft); margin: 2px 0 10px; }
h1 { font-size: 1.4rem; margin: 8px 0 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 0; } h3 { font-size: .9rem; margin: 12px 0 4px; font-weight: 600; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px;
  margin: 14px 0; scroll-margin-top: 10px; }
.note { background: var(--card); border-left: 4px solid var(--c-in); padding: 8px 12px;
  margin: 8px 0; }
.overall { font-size: 1.25rem; font-weight: 650; margin: 0 0 8px; }
  section > p.overall.pass { color: var(--good); }
section > p.overall.fail { color: var(--bad); }
.overall small { display: block; font-size: .85rem; font-weight: 400; }
.row { display: grid; grid-template-columns: 52px 13.5em 5.2em 5.5em 1fr; gap: 2px 10px;
  padding: 6px 4px;
  border-top: 1px solid var(--line); color: inherit; text-decoration: none; align-items: baseline; }
.row:hover { background: var(--back); } .row.fail { background: var(--bad-back); }
.value { text-align: right; font-variant-numeric: tabular-nums; font-weight: 600; }
.limit, .text { color: var(--soft); font-variant-numeric: tabular-nums; }
  .text { font-size: .87rem; }
.chip { font-size: .75rem; font-weight: 650; text-align: center; border-radius: 5px;
  padding: 1px 6px;
  border: 1px solid var(--line); color: var(--soft); }
.pass > .chip { color: var(--good); border-color: var(--good); }
.fail > .chip, h2 > .chip { color: var(--card); background: var(--bad); border-color: var(--bad); }
h2 > .chip { margin-left: 8px; vertical-align: 2px; }
.legend { font-size: .85rem; margin: 10px 0 0; } .key { display: inline-block; width: 16px;
  height: 3px;
  vertical-align: middle; margin: 0 5px 0 10px; } .key.in { background: var(--c-in); }
.key.out { background: var(--c-out); } .key.ref { background: var(--c-ref); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr));
  gap: 10px; }
ul { list-style: none; margin: 0; padding: 0 8px; align-self: center; } li { margin: 8px 0; }
li small { display: block; } li em, .text em { display: block; font-style: normal;
  color: var(--ink); }
li span { color: var(--soft); }
figure { margin: 0; } .plots figure { max-width: 640px; } svg { width: 100%; height: auto;
  display: block; }
.panels { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 6px; }
img { width: 100%; display: block; border-radius: 4px; } figcaption { font-size: .8rem;
  color: var(--soft); }
summary { cursor: pointer; margin-top: 8px; color: var(--soft); }
table { border-collapse: collapse; font-size: .9rem; margin: 6px 0; } th { text-align: left;
  font-weight: 500;
  color: var(--soft); padding: 2px 16px 2px 0; vertical-align: top; } td { overflow-wrap: anywhere;
  }
@media (max-width: 720px) { body { padding: 8px; } .row { grid-template-columns: 52px 1fr auto; }
  .limit { grid-column: 3; grid-row: 2; text-align: right; } .text { grid-column: 2; grid-row: 2; }
  .panels { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
"""
