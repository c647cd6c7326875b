"""The look of the report."""

STYLE = """
:root { --ink: #1d2733; --soft: #66727f; --line: #dde3e9; --win: #17803d; --lose: #b3372f; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fbfcfd;
       font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 12px; }
h2 { font-size: 19px; margin: 44px 0 12px; border-top: 1px solid var(--line); padding-top: 20px; }
.lead { font-size: 17px; max-width: 76ch; }
.note { color: var(--soft); max-width: 84ch; }
table { border-collapse: collapse; width: 100%; background: #fff; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 12px; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
tbody th, thead th:first-child { text-align: left; font-weight: 600; }
thead th { font-weight: 600; vertical-align: bottom; }
small { display: block; color: var(--soft); font-weight: 400; font-size: 11.5px; line-height: 1.35; }
tr.trivial, tr.classical, tr.random-init { background: #f4f6f8; }
tr.random-init th, tr.random-init td { border-bottom: 2px solid #b9c3cd; }
tr.surrogate td { color: var(--soft); }
td.win, b.win { color: var(--win); font-weight: 600; }
td.lose, .lose { color: var(--lose); }
td.none { color: #b7bfc7; }
.caption, figcaption { color: var(--soft); font-size: 13px; max-width: 100ch; }
figure { margin: 0; }
img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); }
code { font-size: 12px; }
"""
