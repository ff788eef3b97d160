"""The empty page of a report: its style sheet, light and dark, and the places of title and body."""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{title}}</title>
<style>
:root {
  --ink: #1d232b; --soft: #667080; --line: #e3e7ec; --paper: #f6f7f9; --card: #ffffff;
  --accent: #2563eb; --good: #15803d;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e9ee; --soft: #98a2b1; --line: #2c333d; --paper: #14181d; --card: #1c2127;
    --accent: #6ea0ff; --good: #4ade80;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 28px 20px 60px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { margin: 0; font-size: 28px; letter-spacing: -0.01em; }
h2 { margin: 0 0 12px; font-size: 17px; }
h2 small, small, footer, header p { color: var(--soft); font-weight: 400; font-size: 13px; }
header p { margin: 4px 0 20px; font-size: 15px; }
section { margin-bottom: 20px; }
section:not(.tiles):not(.charts), details, figure {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px 18px;
}
.badge {
  border: 1px solid var(--accent); color: var(--accent); border-radius: 99px;
  padding: 1px 10px; font-size: 13px; margin-right: 6px;
}
.badge.done { border-color: var(--good); color: var(--good); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; }
.tiles div {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px; display: grid;
}
.tiles b { font-size: 25px; line-height: 1.25; font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 12px; }
figure { margin: 0; }
figcaption { font-weight: 600; display: flex; justify-content: space-between; margin-bottom: 6px; }
figcaption span { color: var(--accent); font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: auto; }
.bars { max-width: 820px; }
.grid { stroke: var(--line); }
.tick, .value, .name { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
.name, .value { fill: var(--ink); font-size: 13px; }
.curve { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; }
.raw { fill: none; stroke: var(--accent); stroke-width: 1; opacity: 0.28; }
.dot { fill: var(--accent); }
.track { fill: var(--line); opacity: 0.6; }
.bar { stroke: var(--soft); stroke-opacity: 0.4; }
.none { color: var(--soft); text-align: center; padding: 60px 0; margin: 0; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 12px; }
.pictures img { width: 100%; max-width: 960px; border-radius: 6px; border: 1px solid var(--line); }
ul { margin: 0; padding-left: 18px; }
pre {
  margin: 4px 0 10px; padding: 8px 12px; background: var(--paper); border: 1px solid var(--line); border-radius: 6px;
  overflow-x: auto;
}
pre, table { font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; }
details { margin-bottom: 12px; }
summary { font-weight: 600; cursor: pointer; }
table { border-collapse: collapse; margin-top: 10px; }
th {
  text-align: left; font-weight: 400; color: var(--soft); padding: 2px 24px 2px 0;
  vertical-align: top; white-space: nowrap;
}
td { padding: 2px 0; overflow-wrap: anywhere; }
</style></head><body>
{{body}}
</body></html>
"""
