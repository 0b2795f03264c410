"""The page's style sheet: light and dark, from a phone's width on. Lines differ in dashes as well as in colour."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root{--back:#fff;--card:#f6f7f9;--text:#1b1f24;--dim:#57606a;--grid:#d5dae0;--used:#7fb3e6;--entitled:#0b4f9e;
--floor:#1a7f37;--limit:#8250df;--pressure:#d4862a;--bad:#c0392b}
@media(prefers-color-scheme:dark){:root{--back:#0f1318;--card:#181d24;--text:#e6e9ed;--dim:#9aa4af;--grid:#333b45;
--used:#2f6da8;--entitled:#8cc4ff;--floor:#5fd07f;--limit:#c3a3ff;--pressure:#f0a850;--bad:#ff7b6b}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:110rem;padding:0 1rem 3rem;background:var(--back);color:var(--text);
font:15px/1.45 system-ui,sans-serif}
h1{font-size:1.4rem;margin:1rem 0 .2rem}h2{font-size:1.1rem;margin:1.6rem 0 .5rem}
p{margin:.2rem 0;color:var(--dim)}.remark{color:var(--bad)}
.charts{display:grid;gap:.8rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr))}
figure{margin:0;padding:.6rem;background:var(--card);border-radius:.5rem;min-width:0}
figcaption{font-size:.85rem;color:var(--dim);overflow-wrap:anywhere;min-height:2.6em}
figcaption b{color:var(--text);font-size:.95rem}
svg{display:block;width:100%;height:auto}
svg text{font:9.5px system-ui,sans-serif;fill:var(--dim)}
svg .grid{stroke:var(--grid);stroke-width:.7;fill:none}
svg .line{fill:none;stroke-width:1.4;stroke-linejoin:round}
svg .area{stroke:none}
.area.used{fill:var(--used)}.line.entitled{stroke:var(--entitled)}
.line.floor{stroke:var(--floor);stroke-dasharray:5 3}.line.limit{stroke:var(--limit);stroke-dasharray:1.5 2.5}
.area.pressure{fill:var(--pressure)}
.mark{stroke-width:1.2;fill:none}.mark.bad{stroke:var(--bad)}.mark.happened{stroke:var(--dim)}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;list-style:none;margin:.6rem 0 0;padding:0;font-size:.85rem}
.legend i{display:inline-block;width:1.4rem;margin-right:.4rem;vertical-align:middle;border-top:3px solid}
i.used{border-color:var(--used);border-top-width:.7rem}i.entitled{border-color:var(--entitled)}
i.floor{border-color:var(--floor);border-top-style:dashed}i.limit{border-color:var(--limit);border-top-style:dotted}
i.pressure{border-color:var(--pressure);border-top-width:.5rem}
.legend i.bad,.legend i.happened{width:3px;height:.8rem;border:0;background:var(--bad)}
.legend i.happened{background:var(--dim)}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--dim);padding-bottom:.4rem;max-width:60rem}
th,td{padding:.25rem .6rem;border-bottom:1px solid var(--grid);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}tr.bad td{color:var(--bad)}
thead th{position:sticky;top:0;background:var(--back)}
table.words td{text-align:left}
"""
