"""The page around the figures of a report: style, script and the few HTML pieces that every section uses."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape as esc

#: CSS colour of each evaluated stage, the same in cards, bars and curves.
COLOURS = {
    "cam": "var(--cam)",
    "refined": "var(--refined)",
    "segment": "var(--segment)",
    "segment_full": "var(--full)",
}


def page(title: str, header: str, sections: Sequence[tuple[str, str, str]], footer: str) -> str:
    """The whole document.

    Args:
        title: plain text.
        header: HTML above the first section.
        sections: ``(anchor, heading, HTML)`` each.
        footer: HTML below.
    """
    links = "".join(f'<a href="#{anchor}">{esc(heading)}</a>' for anchor, heading, _ in sections)
    body = "".join(
        f'<section id="{anchor}" aria-labelledby="{anchor}-h"><h2 id="{anchor}-h">{esc(heading)}</h2>{html}</section>'
        for anchor, heading, html in sections
    )
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{esc(title)}</title><style>{STYLE}</style></head><body>"
        f'<nav aria-label="Sections"><div>{links}</div></nav>'
        f"<header>{header}</header><main>{body}</main><footer>{footer}</footer>"
        f'<dialog id="zoom" aria-label="Enlarged images"></dialog><script>{SCRIPT}</script></body></html>\n'
    )


def note(text: str) -> str:
    """A sentence in place of something that is not there; ``text`` is plain."""
    return f'<p class="note">{esc(text)}</p>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str, kind: str = "") -> str:
    """A table whose first column heads the rows.

    Args:
        head: plain texts; one that begins with ``#`` heads a column of numbers, without the sign.
        rows: HTML cells.
        caption: plain text, read aloud and shown above.
        kind: CSS class.
    """
    numeric = [name.startswith("#") for name in head]
    cells = "".join(f'<th scope="col"{_number(n)}>{esc(h.removeprefix("#"))}</th>' for h, n in zip(head, numeric))
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(f"<td{_number(n)}>{cell}</td>" for cell, n in zip(row[1:], numeric[1:]))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table class="{kind}"><caption>{esc(caption)}</caption>'
        f"<thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def details(summary: str, html: str) -> str:
    """A part that opens on request; printed open."""
    return f"<details><summary>{esc(summary)}</summary>{html}</details>"


def swatch(colour: Sequence[int]) -> str:
    """A square of an RGB colour."""
    red, green, blue = (int(v) for v in colour)
    return f'<i class="swatch" style="background:rgb({red} {green} {blue})"></i>'


def _number(numeric: bool) -> str:
    return ' class="n"' if numeric else ""


STYLE = """
:root{--bg:#fcfcfb;--raise:#fff;--ink:#1a1c20;--soft:#5b616a;--line:#e2e3e6;--cam:#b9770e;--refined:#1f7f76;
  --segment:#2c5fb8;--full:#858b95;--warn:#a8321f;--heat:44 95 184;--on-heat:#fff;color-scheme:light dark}
@media (prefers-color-scheme:dark){
  :root{--bg:#121417;--raise:#191c20;--ink:#e6e8eb;--soft:#9ba2ab;--line:#2b3036;--cam:#dfa347;--refined:#4db5a9;
    --segment:#7fa8ec;--full:#8d949e;--warn:#f0897a;--heat:96 140 220;--on-heat:#fff}
}
*{box-sizing:border-box}
html{scroll-behavior:smooth;scroll-padding-top:56px;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.55 Inter,ui-sans-serif,system-ui,-apple-system,
  "Segoe UI",Roboto,"Helvetica Neue","Liberation Sans",Arial,sans-serif;font-variant-numeric:tabular-nums}
nav div,header,main,footer{max-width:1180px;margin:0 auto;padding:0 28px}
nav{position:sticky;top:0;z-index:2;background:var(--bg);border-bottom:1px solid var(--line)}
nav div{display:flex;gap:22px;overflow-x:auto;white-space:nowrap;scrollbar-width:none}
nav a{color:var(--soft);text-decoration:none;font-size:13px;padding:11px 0}
a{color:inherit}
nav a:hover{color:var(--ink)}
:focus-visible{outline:2px solid var(--segment);outline-offset:2px;border-radius:2px}
header{padding-top:44px}
h1{font-size:32px;line-height:1.15;letter-spacing:-.02em;font-weight:650;margin:0 0 6px;overflow-wrap:anywhere}
h2{font-size:20px;letter-spacing:-.01em;font-weight:620;margin:0 0 6px}
h3{font-size:15px;font-weight:620;margin:30px 0 6px}
p{margin:0 0 12px;max-width:78ch}
.lead{color:var(--soft);font-size:16px;margin-bottom:22px}
.over{color:var(--soft);font-size:13px;margin:0 0 4px}
section{padding:44px 0 0}
section>p:first-of-type{color:var(--soft)}
footer{color:var(--soft);font-size:13px;padding-top:56px;padding-bottom:48px}
.note{color:var(--soft);border-left:2px solid var(--line);padding:2px 0 2px 14px;margin:12px 0}
code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.86em;
  overflow-wrap:anywhere}
small{font-size:12.5px;color:var(--soft)}
.path{list-style:none;display:flex;flex-wrap:wrap;gap:8px 0;margin:0;padding:0;font-size:13px}
.path li{display:flex;align-items:baseline;gap:7px;color:var(--soft)}
.path li:not(:last-child):after{content:"";width:22px;height:1px;background:var(--line);align-self:center;
  margin:0 10px 0 3px}
.path b{font-weight:600;color:var(--ink)}
.path .todo b{font-weight:400;color:var(--soft)}
.path .failed b,.failed{color:var(--warn)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:14px;margin-top:16px}
.card{background:var(--raise);border:1px solid var(--line);border-radius:6px;padding:16px 18px 14px;display:flex;
  flex-direction:column;break-inside:avoid}
.card h3{margin:0;font-size:13.5px;display:flex;gap:8px;align-items:center}
.card h3 i,.key i{width:10px;height:10px;border-radius:2px;flex:none}
.card .big{font-size:42px;line-height:1.1;letter-spacing:-.03em;font-weight:600;margin:10px 0 0}
.card .big span{font-size:18px;font-weight:500;color:var(--soft);letter-spacing:0;margin-left:3px}
.card .bars{margin:8px 0 10px;background:var(--line);border-radius:1px}
.card p{margin:0 0 3px;font-size:13.5px}
.proto{color:var(--soft);font-size:13px}
.proto b{font-weight:600;margin-right:6px}
.scroll+.proto{margin-top:10px}
.proto+.proto{margin-top:-8px}
.card .proto{font-size:12.5px;line-height:1.45;margin-top:auto;padding-top:10px}
.empty{background:none;border-style:dashed;color:var(--soft)}
.card.empty .big{color:var(--line)}
.tag{display:inline-block;border:1px solid currentColor;border-radius:3px;font-size:11.5px;line-height:1.35;
  padding:0 4px}
.warn{color:var(--warn)}
.hidden{position:absolute;clip-path:inset(50%);width:1px;height:1px;overflow:hidden}
.key{list-style:none;display:flex;flex-wrap:wrap;gap:4px 18px;margin:8px 0;padding:0;font-size:13px;color:var(--soft)}
.key li{display:flex;align-items:center;gap:7px}
.key .swatch{margin:0}
.swatch{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:7px;vertical-align:-1px;
  box-shadow:inset 0 0 0 1px rgb(128 128 128/.55)}
.hatch{background:repeating-linear-gradient(135deg,rgb(224 224 192) 0 2px,rgb(128 128 128/.35) 2px 4px)}
.scroll{overflow-x:auto;margin:10px 0 6px}
table{border-collapse:collapse;font-size:13.5px;width:100%}
caption{text-align:left;color:var(--soft);font-size:13px;padding-bottom:6px;line-height:1.45}
th,td{text-align:left;font-weight:400;padding:6px 14px 6px 0;border-bottom:1px solid var(--line);
  vertical-align:middle}
thead th{color:var(--soft);font-size:12.5px;vertical-align:bottom;padding-bottom:4px}
th.n,td.n{text-align:right;white-space:nowrap;padding-right:0;padding-left:16px}
td.n+td:not(.n),th.n+th:not(.n){padding-left:22px}
td:last-child,th:last-child{padding-right:0}
.iou th:first-child{width:15%}
.iou td:nth-child(2){width:52%;min-width:150px;padding-right:0;
  background:linear-gradient(90deg,var(--line) 1px,transparent 1px) 0 0/25% 100%}
.iou th[scope=row]{white-space:nowrap}
.time td:nth-child(4),.time td:nth-child(6){width:20%;min-width:80px}
.facts{max-width:940px}
.facts th{color:var(--soft);width:190px;vertical-align:top}
.side{display:grid;grid-template-columns:minmax(0,520px) minmax(0,1fr);gap:10px 44px;align-items:center}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr));gap:22px 30px;
  margin-top:10px}
figure{margin:0;break-inside:avoid}
.charts figcaption{font-size:13px;font-weight:600}
.charts figcaption small{font-weight:400;margin-left:6px}
.charts .chart{max-width:400px}
.side .chart{max-width:560px}
.chart{display:block;width:100%;height:auto;overflow:visible;margin-top:10px}
.chart text{font-size:11px;fill:var(--soft)}
.chart .mark{fill:var(--ink)}
.grid{stroke:var(--line)}
.rule{stroke:var(--ink);stroke-dasharray:2 3}
.dot{fill:var(--bg);stroke:var(--ink);stroke-width:1.6}
.matrix{width:auto}
.matrix td{text-align:center;width:56px;padding:7px 4px;border:2px solid var(--bg);border-radius:4px;
  background:rgb(var(--heat)/calc(.04 + .96*var(--v)))}
.matrix .corner{background:none}
.matrix td.hi{color:var(--on-heat)}
.matrix td.lo{color:var(--soft)}
.matrix th{white-space:nowrap;border:0;padding:4px 10px 4px 0}
.matrix thead th{text-align:center;padding:4px}
.side.wide{grid-template-columns:minmax(0,max-content) minmax(240px,340px);justify-content:start;align-items:start}
.pixels{image-rendering:pixelated;width:min(100%,560px);height:auto;display:block}
details{margin:14px 0 0}
summary{cursor:pointer;color:var(--soft);font-size:13.5px}
summary:hover{color:var(--ink)}
.sheet{width:auto}
.sheet td,.sheet th{vertical-align:top;padding:10px 12px 10px 0}
.sheet thead th{padding-bottom:4px}
.sheet th[scope=row]{width:136px;min-width:136px;max-width:136px;font-size:13px;line-height:1.5}
.sheet tr{break-inside:avoid}
.sheet img{display:block;width:auto;height:auto;max-width:var(--t);max-height:var(--t);border-radius:2px;
  cursor:zoom-in}
.sheet figcaption{font-size:12px;color:var(--soft);margin-top:4px;line-height:1.35}
.sheet figcaption:empty{display:none}
.maps{display:flex;flex-wrap:wrap;gap:8px calc(.06*var(--t));width:calc(1.55*var(--t))}
.maps figure:not(:only-child) img{max-width:calc(.74*var(--t));max-height:calc(.74*var(--t))}
.maps:has(figure:nth-child(3)) img{max-width:calc(.48*var(--t))!important;max-height:calc(.48*var(--t))!important}
.sheet button{font:inherit;font-weight:600;color:inherit;background:none;border:0;padding:0;cursor:zoom-in;
  text-align:left;overflow-wrap:anywhere}
.sheet dl{display:grid;grid-template-columns:auto auto;gap:0 10px;margin:6px 0 0;font-size:12px;color:var(--soft);
  justify-content:start}
.sheet dd{margin:0;text-align:right;color:var(--ink)}
.filter{font-size:13px;color:var(--soft);display:none}
.js .filter{display:block}
select{font:inherit;color:inherit;background:var(--raise);border:1px solid var(--line);border-radius:4px;
  padding:2px 6px}
.worst{columns:5 170px;column-gap:32px;padding:0;margin:10px 0;list-style:none;font-size:13.5px;max-width:none}
.worst li{display:flex;justify-content:space-between;gap:12px;padding:4px 0;border-bottom:1px solid var(--line);
  break-inside:avoid}
dialog{border:1px solid var(--line);border-radius:8px;background:var(--raise);color:var(--ink);padding:20px;
  max-width:min(96vw,1500px);max-height:94vh}
dialog::backdrop{background:rgb(0 0 0/.55)}
dialog:focus-visible{outline:0}
dialog p{font-weight:620;display:flex;justify-content:space-between;max-width:none}
dialog button{font:inherit;font-size:13px;color:inherit;background:none;border:1px solid var(--line);border-radius:4px;
  padding:2px 10px;cursor:pointer}
dialog div{display:flex;flex-wrap:wrap;gap:14px}
dialog img{display:block;width:auto;height:min(34vh,340px);max-width:100%;border-radius:3px}
dialog figcaption{font-size:13px;color:var(--soft);margin-top:4px}
@media (max-width:860px){
  .side,.side.wide{grid-template-columns:minmax(0,1fr)}
}
@media (max-width:720px){
  nav div,header,main,footer{padding-left:16px;padding-right:16px}
  h1{font-size:26px}
  .sheet,.sheet tbody{display:block}
  .sheet thead{position:absolute;clip-path:inset(50%);width:1px;height:1px}
  .sheet tr{display:flex;flex-wrap:wrap;gap:10px;padding:14px 0;border-bottom:1px solid var(--line)}
  .sheet tr[hidden]{display:none}
  .sheet td,.sheet th{border:0;padding:0}
  .sheet th[scope=row]{flex:1 0 100%;max-width:none}
  .sheet dl{grid-template-columns:repeat(6,auto)}
  .sheet td[data-column]:before{content:attr(data-column);display:block;font-size:12px;color:var(--soft)}
  .sheet{--t:calc(50vw - 24px)!important}
  .maps{width:auto}
  .iou td:nth-child(2){min-width:110px}
  .matrix td{width:auto;min-width:38px;font-size:12px}
}
@media print{
  :root{--bg:#fff;--raise:#fff;--ink:#000;--soft:#444;--line:#ccc;--cam:#b9770e;--refined:#1f7f76;--segment:#2c5fb8;
    --full:#858b95;--warn:#a8321f;--heat:44 95 184;color-scheme:light}
  body{font-size:11px;-webkit-print-color-adjust:exact;print-color-adjust:exact}
  nav,.filter,dialog{display:none!important}
  section{padding-top:24px}
  h2,h3{break-after:avoid}
  .sheet{--t:98px!important}
  .scroll{overflow:visible}
  header{padding-top:0}
  .sheet th[scope=row]{min-width:90px}
  .cards{grid-template-columns:repeat(5,1fr);gap:8px}
  .card{padding:10px}
  .card .big{font-size:26px}
  table,caption,.proto,.card .proto,.card p,.card h3,.key,.worst,.path,summary{font-size:10px}
  thead th{font-size:9.5px}
  th,td{padding-top:3px;padding-bottom:3px}
  tr,.charts>figure{break-inside:avoid}
  .side{grid-template-columns:2fr 3fr}
  .side.wide{grid-template-columns:1fr 1fr}
  .matrix td{width:auto;min-width:24px}
}
"""

SCRIPT = """
document.documentElement.classList.add('js');
const zoom=document.getElementById('zoom');
document.addEventListener('click',event=>{
  if(event.target===zoom){zoom.close();return}
  const row=event.target.closest('.sheet tbody tr');
  if(!row||!event.target.closest('img,button'))return;
  const make=tag=>document.createElement(tag),title=make('p'),tiles=make('div'),close=make('button');
  close.textContent='Close';close.addEventListener('click',()=>zoom.close());
  title.append(row.querySelector('button').textContent,close);
  row.querySelectorAll('figure').forEach(figure=>{
    const copy=figure.cloneNode(true),column=figure.closest('td').dataset.column,text=copy.querySelector('figcaption');
    copy.querySelector('img').loading='eager';
    text.textContent=[column,text.textContent].filter(Boolean).join(' \\u00b7 ');tiles.append(copy)});
  zoom.replaceChildren(title,tiles);zoom.showModal()});
document.querySelectorAll('.filter select').forEach(select=>select.addEventListener('change',()=>{
  document.querySelectorAll('.sheet tbody tr').forEach(row=>{
    row.hidden=select.value!==''&&!row.dataset.tags.split(' ').includes(select.value)})}));
addEventListener('beforeprint',()=>document.querySelectorAll('details').forEach(part=>{part.open=true}));
"""
