"""The look of the page."""

STYLE = """
:root { --ink: #1d2733; --soft: #5d6975; --line: #dde3e9; --win: #0b6b3a; --lose: #b3372f; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fbfcfd;
       font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
main { max-width: 1128px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 12px; }
h2 { font-size: 19px; margin: 44px 0 12px; border-top: 1px solid var(--line); padding-top: 20px; }
h3 { font-size: 15px; margin: 20px 0 4px; }
.lead { font-size: 17px; max-width: 76ch; }
.note { color: var(--soft); max-width: 84ch; }
.scroll { overflow-x: auto; margin-bottom: 14px; }
table { border-collapse: collapse; width: 100%; background: #fff; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 9px; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
         white-space: nowrap; }
tbody th, thead th:first-child { text-align: left; font-weight: 600; }
tbody th { position: sticky; left: 0; background: inherit; }
tbody tr { background: #fff; }
thead th { font-weight: 600; vertical-align: bottom; }
small { display: block; color: var(--soft); font-weight: 400; font-size: 11.5px; line-height: 1.35;
        white-space: normal; max-width: 150px; margin-left: auto; }
table.dense { font-size: 13px; }
table.dense th, table.dense td { padding: 4px 8px; }
table.prose td, table.prose th { white-space: normal; text-align: left; }
tr.trivial, tr.classical, tr.random-init, tr.supervised { background: #f4f6f8; }
tr.baselines-end > * { border-bottom: 2px solid #b9c3cd; }
tr.surrogate td { color: var(--soft); }
td.win { font-weight: 700; color: var(--win); }
td.behind { color: #7a828b; }
td.lose, .lose { color: var(--lose); }
td.none { color: #b7bfc7; }
td.flag { color: var(--lose); font-weight: 600; }
ul.verdicts li { margin: 3px 0; max-width: 112ch; }
.caption, figcaption { color: var(--soft); font-size: 13px; max-width: 112ch; }
.absent { color: var(--soft); }
figure { margin: 0 0 18px; }
img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); }
details { margin: 10px 0; }
summary { cursor: pointer; color: var(--soft); }
code { font-size: 12px; }
"""
