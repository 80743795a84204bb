'use strict';
// What moves on a page. Without this script only thresholds, errors, sorting and single cells are missing.
document.documentElement.classList.add('js');
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const make = (tag, text = '') => Object.assign(document.createElement(tag), {textContent: text});

// Tables: a button in each heading; descending, ascending, then as written. Cells without a number stay last.
for (const table of all('table.sortable')) {
  const body = table.tBodies[0], written = [...body.rows];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const text = row => row.cells[column].textContent.trim();
    if (!written.some(text)) return;
    const numeric = head.classList.contains('n') && column > 0, button = make('button', head.textContent);
    button.type = 'button';
    head.replaceChildren(button);
    head.ariaSort = 'none';
    button.addEventListener('click', () => {
      const order = ['none', ...(numeric ? ['descending', 'ascending'] : ['ascending', 'descending'])];
      const next = order[(order.indexOf(head.ariaSort) + 1) % 3], sign = next === 'descending' ? -1 : 1;
      for (const other of head.parentNode.cells) if (other.ariaSort) other.ariaSort = 'none';
      head.ariaSort = next;
      const compare = (a, b) => {
        if (!numeric) return sign * text(a).localeCompare(text(b), undefined, {numeric: true});
        const [x, y] = [parseFloat(text(a)), parseFloat(text(b))];
        return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) : sign * (x - y);
      };
      body.append(...(next === 'none' ? written : [...written].sort(compare)));
    });
  });
}

// Confusion: the cell under the pointer, or the one that arrow keys moved to, in words.
for (const figure of all('.confusion')) {
  const svg = figure.querySelector('svg'), text = figure.querySelector('figcaption'), cursor = svg.querySelector('.cursor');
  const counts = JSON.parse(svg.dataset.counts), labels = JSON.parse(svg.dataset.labels);
  const [left, top, cell] = svg.dataset.place.split(' ').map(Number);
  let at = null;
  const show = (row, column) => {
    if (counts[row]?.[column] === undefined) return;
    at = [row, column];
    const pixels = counts[row][column], share = 100 * pixels / Math.max(1, counts[row].reduce((a, b) => a + b, 0));
    text.textContent = `${labels[row]} \u2192 ${labels[column]}: ${share.toFixed(1)} % of ${labels[row]}, `
      + `${pixels.toLocaleString('en')} pixels`;
    cursor.setAttribute('x', left + column * cell);
    cursor.setAttribute('y', top + row * cell);
    cursor.classList.add('on');
  };
  for (const name of ['pointermove', 'click']) svg.addEventListener(name, event => {
    const {x, y} = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    show(Math.floor((y - top) / cell), Math.floor((x - left) / cell));
  });
  svg.addEventListener('keydown', event => {
    const step = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
    if (!step) return;
    event.preventDefault();
    show(...(at ? [at[0] + step[0], at[1] + step[1]] : [0, 0]));
  });
}

// Maps: the script draws what moves with the threshold, for the rows in sight. Colour n of 201 stands for values of (n-1)/200 to n/200.
const levels = JSON.parse(document.querySelector('.sheets')?.dataset.levels ?? '[]');
const levelOf = new Map(levels.map((colour, level) => [String(colour), level])), layersOf = new WeakMap(), sight = new Set();

async function readMap(figure, toWidth, toHeight) {
  const copy = new Image();
  copy.src = figure.querySelector('.layer').src;
  await copy.decode();
  const {naturalWidth: width, naturalHeight: height} = copy;
  const context = Object.assign(make('canvas'), {width, height}).getContext('2d', {willReadFrequently: true});
  context.drawImage(copy, 0, 0);
  const {data} = context.getImageData(0, 0, width, height);
  const known = Float32Array.from({length: width * height}, (_, i) => levelOf.get(String(data.subarray(4 * i, 4 * i + 3))));
  // Bilinear as in the evaluation: centres of pixels, edges repeated.
  const taps = (from, to) => Array.from({length: to}, (_, i) => {
    const centre = Math.max((i + .5) * from / to - .5, 0), first = Math.min(Math.floor(centre), from - 1);
    return [first, Math.min(first + 1, from - 1), centre - first];
  });
  const columns = taps(width, toWidth), values = new Float32Array(toWidth * toHeight);
  let place = 0;
  for (const [up, down, y] of taps(height, toHeight)) for (const [left, right, x] of columns) {
    const above = known[up * width + left] * (1 - x) + known[up * width + right] * x;
    const below = known[down * width + left] * (1 - x) + known[down * width + right] * x;
    values[place++] = (above * (1 - y) + below * y - .5) / (levels.length - 1);
  }
  return {figure, values, colour: figure.dataset.colour.match(/\d+/g).map(Number)};
}

// A picture of `kinds`, one a pixel, 0 for nothing: `edges` has the colour of a pixel beside another kind, `fills` of any other.
function paint(figure, kinds, width, height, fills, edges) {
  const canvas = figure.querySelector('canvas') ?? Object.assign(make('canvas'), {width, height});
  const image = new ImageData(width, height);
  for (let y = 0, i = 0; y < height; y++) for (let x = 0; x < width; x++, i++) {
    const kind = kinds[i];
    if (!kind) continue;
    const isEdge = (x > 0 && kinds[i - 1] !== kind) || (x < width - 1 && kinds[i + 1] !== kind)
      || (y > 0 && kinds[i - width] !== kind) || (y < height - 1 && kinds[i + width] !== kind);
    image.data.set((isEdge ? edges : fills)[kind - 1], 4 * i);
  }
  canvas.getContext('2d').putImageData(image, 0, 0);
  figure.querySelector('.pic').append(canvas);
}

// The lines of the maps and their mask: background where no map exceeds the threshold, else the class of the strongest.
async function draw(row, threshold) {
  const cut = row.querySelector('.cut');
  if (!cut) return;
  const [columns, lines] = ['width', 'height'].map(side => Number(cut.querySelector('img').getAttribute(side)));
  if (!layersOf.has(row)) layersOf.set(row, Promise.all(all('.map', row).map(figure => readMap(figure, columns, lines))));
  const layers = await layersOf.get(row), kinds = new Uint8Array(columns * lines);
  if (!layersOf.has(row)) return;
  for (let i = 0; i < kinds.length; i++) {
    let best = 0;
    for (let m = 1; m < layers.length; m++) if (layers[m].values[i] > layers[best].values[i]) best = m;
    if (layers[best].values[i] > threshold) kinds[i] = best + 1;
  }
  for (const {figure, values} of layers)
    paint(figure, values.map(value => value > threshold), columns, lines, [[0, 0, 0, 0]], [[255, 255, 255, 255]]);
  const fills = layers.map(({colour}) => [...colour, 153]);
  paint(cut, kinds, columns, lines, fills, fills.map(fill => [...fill.slice(0, 3).map(value => .5 * value + 127.5), 255]));
}

const forget = row => { layersOf.delete(row); all('canvas', row).forEach(canvas => canvas.remove()); };
const barOf = row => row.closest('.sheet').querySelector('.bar');
const stepOf = bar => Number(bar.querySelector('input[type=range]').value);
const thresholdOf = bar => JSON.parse(bar.dataset.thresholds)[stepOf(bar)];
const isMoved = bar => stepOf(bar) !== Number(bar.dataset.start);
const observer = new IntersectionObserver(entries => entries.forEach(({target: row, isIntersecting}) => {
  sight[isIntersecting ? 'add' : 'delete'](row);
  if (!isIntersecting) forget(row);
  else if (isMoved(barOf(row))) draw(row, thresholdOf(barOf(row)));
}), {rootMargin: '400px 0px'});
all('.row').forEach(row => observer.observe(row));

for (const bar of all('.bar')) {
  const range = bar.querySelector('input[type=range]'), output = bar.querySelector('output'), back = bar.querySelector('.back');
  const thresholds = JSON.parse(bar.dataset.thresholds), miou = JSON.parse(bar.dataset.miou), sheet = bar.parentNode;
  const {source, list} = bar.dataset, start = Number(bar.dataset.start);
  let isWaiting = false;
  const describe = () => {
    const step = stepOf(bar), points = miou.length ? miou[step] - miou[start] : 0;
    const change = miou.length && source
      ? `${points < 0 ? '\u2212' : '+'}${Math.abs(points).toFixed(1)} against ${thresholds[start].toFixed(2)}, ${source}` : '';
    const figure = miou.length ? `mIoU ${miou[step].toFixed(1)} on ${list}` : '', here = step === start ? source : change;
    const words = [thresholds[step].toFixed(2), figure].filter(Boolean).join(' \u00b7 ');
    output.replaceChildren(make('b', words), make('small', here));
    range.ariaValueText = [words, here].filter(Boolean).join(', ');
    back.hidden = step === start || !source;
  };
  const move = () => {
    describe();
    sheet.classList.toggle('moved', isMoved(bar));
    for (const cut of all('.cut[data-iou]', sheet))
      cut.querySelector('figcaption b').textContent = JSON.parse(cut.dataset.iou)[stepOf(bar)].toFixed(1);
    if (!isWaiting) requestAnimationFrame(() => {
      for (const row of sight) if (isMoved(bar) && barOf(row) === bar) draw(row, thresholdOf(bar));
      isWaiting = false;
    });
    isWaiting = true;
  };
  range.addEventListener('input', move);
  back.addEventListener('click', () => { range.value = start; range.focus(); move(); });
  bar.querySelector('.view input').addEventListener('change', event => sheet.classList.toggle('judged', event.target.checked));
  bar.querySelector('select').addEventListener('change', ({target}) => {
    for (const row of all('.row', sheet)) row.hidden = target.value !== '' && !row.dataset.tags.split(' ').includes(target.value);
  });
  describe();
}

// A link to a row that a filter hides shows it.
addEventListener('hashchange', () => {
  const row = document.getElementById(location.hash.slice(1));
  if (!row?.hidden) return;
  const select = barOf(row).querySelector('select');
  select.value = '';
  select.dispatchEvent(new Event('change'));
  row.scrollIntoView();
});

// A row enlarged; arrow keys go to its neighbours.
const zoom = document.getElementById('zoom');
function enlarge(row) {
  const close = make('button', 'Close'), title = make('p'), tiles = row.querySelector('.tiles').cloneNode(true), bar = barOf(row);
  close.addEventListener('click', () => zoom.close());
  title.append(row.querySelector('button').textContent, close);
  zoom.replaceChildren(title, tiles);
  forget(zoom);
  zoom.row = row;
  zoom.className = bar.parentNode.className;
  zoom.style.cssText = row.style.cssText;
  if (!zoom.open) zoom.showModal();
  if (isMoved(bar)) draw(zoom, thresholdOf(bar));
}
zoom.addEventListener('keydown', event => {
  const step = {ArrowLeft: -1, ArrowRight: 1}[event.key], rows = all('.row:not([hidden]):has(.tiles)');
  const next = step && rows[rows.indexOf(zoom.row) + step];
  if (next) enlarge(next);
});
document.addEventListener('click', event => {
  if (event.target === zoom) return zoom.close();
  const row = event.target.closest('.row');
  if (row?.querySelector('.tiles') && event.target.closest('.pic, button')) enlarge(row);
});
addEventListener('beforeprint', () => all('details').forEach(part => { part.open = true; }));
