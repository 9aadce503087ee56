"""The report's style sheet: system fonts, light and dark by the reader's own setting, wide and narrow screens."""

#: Colours by the reader's own setting, light or dark, and the font.
BASICS = """
:root {
  --font: -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif;
  --paper: #ffffff; --ink: #1b2027; --soft: #5b6573; --faint: #8a94a1; --rule: #dfe3e8; --wash: #f5f6f8;
  --up: #0b6bb5; --down: #b3470b; --note: #fdf6e7; --note-rule: #d9a520;
  color-scheme: light dark;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --ink: #e6e9ed; --soft: #a3adb9; --faint: #78828f; --rule: #2e343c; --wash: #1b1f25;
    --up: #6db8f2; --down: #f0935a; --note: #26210f; --note-rule: #b98a14;
  }
}
"""
#: Of charts, in a page and in files of their own.
CHARTS = """
.up { color: var(--up); } .down { color: var(--down); }
.chart text { fill: var(--soft); font-size: 13px; }
.chart .chart-title { fill: var(--ink); font-size: 15px; font-weight: 600; }
.chart .faint { fill: var(--faint); font-size: 12px; }
.chart .grid { stroke: var(--rule); stroke-width: 1; }
.chart .axis { stroke: var(--faint); stroke-width: 1; }
.chart .curve { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: butt; }
.chart .row, .chart .block { fill: var(--ink); }
.chart .block { font-weight: 600; font-size: 12.5px; }
.chart .aside { font-size: 12px; }
.chart .paper { fill: var(--paper); }
.chart .control { font-style: italic; }
.chart .zero { stroke: var(--soft); stroke-width: 1.5; }
.chart .noise { color: var(--soft); }
.chart .grey { color: var(--faint); } .chart .grey text { fill: var(--faint); }
.chart .hollow { fill: var(--paper); stroke: currentColor; stroke-width: 1.6; }
.chart .interval { stroke: currentColor; stroke-width: 1.8; }
"""
_PAGE = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 var(--font);
  font-variant-numeric: tabular-nums lining-nums;
}
main, header, footer { max-width: 1180px; margin: 0 auto; padding: 0 28px; }
header { padding-top: 36px; }
.kind { color: var(--soft); font-size: 14px; letter-spacing: .01em; margin: 0 0 10px; }
h1 { font-size: 34px; line-height: 1.2; letter-spacing: -.015em; font-weight: 650; margin: 0 0 14px; max-width: 30em;
  text-wrap: balance; }
h2 { font-size: 22px; line-height: 1.3; letter-spacing: -.008em; font-weight: 650; margin: 0 0 6px; }
h3 { font-size: 16px; font-weight: 650; margin: 28px 0 6px; }
p { margin: 0 0 12px; max-width: 74ch; text-wrap: pretty; }
.lead { font-size: 18px; max-width: 76ch; }
.lead + .lead { margin-top: -4px; }
.soft, figcaption, .method { color: var(--soft); font-size: 14px; }
section { border-top: 1px solid var(--rule); margin-top: 44px; padding-top: 28px; }
section.first { border: 0; margin: 0; padding: 0; }
section.first figure { margin: 0 0 18px; }
a { color: inherit; text-decoration-color: var(--faint); text-underline-offset: 3px; }
nav { margin: 26px 0 0; font-size: 14px; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: 6px 22px; margin: 0; padding: 0; }
.caution { background: var(--note); border-left: 3px solid var(--note-rule); padding: 10px 16px; margin: 18px 0 0;
  max-width: 80ch; font-size: 15px; }
.caution p { margin: 0; }
.caution p + p { margin-top: 6px; }
ul.plain { padding-left: 1.2em; margin: 0; font-size: 15px; max-width: 80ch; overflow-wrap: anywhere; }
ul.method { font-size: 14px; margin-bottom: 12px; }
dl.settings { display: flex; flex-wrap: wrap; gap: 3px 24px; margin: 22px 0 0; font-size: 14px; }
dl.settings div { overflow-wrap: anywhere; }
dl.settings dt { display: inline; color: var(--soft); margin-right: 6px; }
dl.settings dd { display: inline; margin: 0; }
.scroll { overflow-x: auto; margin: 16px 0 8px; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; font-size: 14.5px; }
table.ap { width: 100%; }
table.ap th, table.ap td { padding: 7px 9px; text-align: right; white-space: nowrap; }
table.ap thead th { font-weight: 500; color: var(--soft); padding-top: 3px; padding-bottom: 3px; }
table.ap thead tr.metrics th { font-weight: 650; color: var(--ink); text-align: center; }
table.ap thead tr.overlaps th { text-align: center; }
table.ap thead tr:last-child th { border-bottom: 1px solid var(--ink); }
table.ap tbody td, table.ap tbody th { border-bottom: 1px solid var(--rule); vertical-align: top; }
table.ap tbody tr:last-child td, table.ap tbody tr:last-child th { border-bottom: 1px solid var(--ink); }
table.ap th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); z-index: 1;
  padding-left: 0; }
table.ap tbody th { font-weight: 600; }
table.ap tbody th small { display: block; font-weight: 400; color: var(--soft); font-size: 13px; }
table.fits { font-size: 13px; }
table.fits th, table.fits td { padding: 5px; }
table.fits th, table.fits .words { white-space: normal; }
table.fits thead th { vertical-align: bottom; font-size: 12px; line-height: 1.3; }
table.fits .words { text-align: left; }
table.fits tbody th { overflow-wrap: anywhere; min-width: 120px; }
table.ap .opens { padding-left: 22px; }
table.ap .moderate { font-weight: 650; }
table.ap td small { display: block; font-size: 12.5px; font-weight: 400; }
.unfinished { color: var(--soft); text-align: left !important; font-style: italic; }
.swatch { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 8px; }
details { margin: 12px 0; }
summary { cursor: pointer; font-size: 15px; padding: 6px 0; }
summary::marker { color: var(--faint); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 14px 0 10px; padding: 0;
  font-size: 14px; }
.legend li { display: flex; align-items: center; gap: 7px; }
.ramp { width: 96px; height: 12px; border-radius: 2px; }
.key { width: 30px; height: 12px; flex: none; }
.charts { display: grid; gap: 18px 26px; grid-template-columns: repeat(3, minmax(0, 1fr)); margin: 10px 0 14px; }
.charts.wide { grid-template-columns: repeat(2, minmax(0, 1fr)); }
.chart { display: block; width: 100%; height: auto; }
.scroll .chart { max-width: 500px; } .scroll .broad { max-width: none; min-width: 720px; }
"""
_REST = """
.wide .chart text { font-size: 9.5px; } .wide .chart .chart-title { font-size: 11.5px; }
.wide .chart .faint { font-size: 9px; } .wide .chart .curve { stroke-width: 1.6; }
figure { margin: 22px 0 34px; }
.frame { display: grid; gap: 8px; grid-template-columns: var(--columns); align-items: start; }
.photos { display: grid; gap: 8px; }
.frame img { display: block; width: 100%; height: auto; border-radius: 3px; }
.frame .bird { border: 1px solid var(--rule); }
.frame.cameras { grid-template-columns: repeat(3, minmax(0, 1fr)); margin-bottom: 8px; }
.cameras p { margin: 1px 0 0; color: var(--soft); font-size: 13px; text-align: center; }
.counts th, .counts td { padding: 3px 0 3px 14px; text-align: right; vertical-align: bottom; font-weight: 400; }
.counts th:first-child { text-align: left; padding-left: 4px; color: var(--soft); }
.counts thead th { border-bottom: 1px solid var(--rule); font-size: 13px; }
.maps p { margin: 4px 0 0; line-height: 1.35; }
figcaption { margin-top: 8px; }
figcaption b { color: var(--ink); font-weight: 600; }
.card table { font-size: 14px; }
.card th { text-align: left; font-weight: 400; color: var(--soft); padding: 3px 20px 3px 0; vertical-align: top;
  white-space: nowrap; }
.card td { padding: 3px 0; overflow-wrap: anywhere; }
pre { background: var(--wash); padding: 12px 14px; overflow-x: auto; font-size: 13px; line-height: 1.45;
  border-radius: 3px; }
footer { color: var(--soft); font-size: 13px; padding-top: 26px; padding-bottom: 44px; margin-top: 44px;
  border-top: 1px solid var(--rule); }
footer p { max-width: none; }
@media (max-width: 1000px) { .charts { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
@media (max-width: 640px) {
  main, header, footer { padding-left: 16px; padding-right: 16px; }
  header { padding-top: 26px; }
  h1 { font-size: 25px; } h2 { font-size: 20px; } .lead { font-size: 16.5px; }
  section { margin-top: 32px; padding-top: 22px; }
  .charts, .charts.wide { grid-template-columns: minmax(0, 1fr); }
  .charts .chart text { font-size: 13.5px; } .charts .chart .chart-title { font-size: 16px; }
  .charts .chart .faint { font-size: 12px; } .charts .chart .curve { stroke-width: 2; }
  .frame, .frame.cameras { grid-template-columns: minmax(0, 1fr); }
  .frame.maps { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  table.ap th:first-child { min-width: 124px; max-width: 140px; white-space: normal; padding-right: 12px; }
}
@media print { section { break-inside: avoid-page; } nav { display: none; } }
"""
STYLESHEET = BASICS + _PAGE + CHARTS + _REST
