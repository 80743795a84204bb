'use strict';
// The script of report.html. Without it the page is whole, but for what moves: thresholds, errors, sorting, single cells.
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
      const next = {none: numeric ? 'descending' : 'ascending', descending: numeric ? 'ascending' : 'none',
        ascending: numeric ? 'none' : 'descending'}[head.ariaSort];
      for (const other of head.parentNode.cells) if (other.ariaSort) other.ariaSort = 'none';
      head.ariaSort = next;
      const sign = next === 'descending' ? -1 : 1;
      const order = (a, b) => {
        if (!numeric) return sign * text(a).localeCompare(text(b), undefined, {numeric: true});
        const [x, y] = [parseFloat(text(a)), parseFloat(text(b))];
        return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) : sign * (x - y);
      };
      body.append(...(next === 'none' ? written : [...written].sort(order)));
    });
  });
}

// Confusion: the cell under the pointer, or the one that arrow keys moved to, in words.
for (const figure of all('.confusion')) {
  const svg = figure.querySelector('svg'), said = figure.querySelector('figcaption'), cursor = svg.querySelector('.cursor');
  const counts = JSON.parse(svg.dataset.counts), labels = JSON.parse(svg.dataset.labels);
  const [left, top, cell] = svg.dataset.place.split(' ').map(Number);
  let at = [0, 0];
  const show = (row, column) => {
    if (!(row >= 0 && column >= 0 && row < labels.length && column < labels.length)) return;
    at = [row, column];
    const pixels = counts[row][column], share = 100 * pixels / Math.max(1, counts[row].reduce((a, b) => a + b, 0));
    said.textContent = `${labels[row]} \u2192 ${labels[column]}: ${share.toFixed(1)} % of ${labels[row]}, `
      + `${pixels.toLocaleString('en')} pixels`;
    cursor.setAttribute('x', left + column * cell);
    cursor.setAttribute('y', top + row * cell);
    cursor.classList.add('on');
  };
  const point = event => {
    const {x, y} = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    show(Math.floor((y - top) / cell), Math.floor((x - left) / cell));
  };
  svg.addEventListener('pointermove', point);
  svg.addEventListener('click', point);
  svg.addEventListener('keydown', event => {
    const step = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
    if (!step) return;
    event.preventDefault();
    show(...(cursor.classList.contains('on') ? [at[0] + step[0], at[1] + step[1]] : at));
  });
}

// Pictures, drawn as trainer/overlays.py draws them. `opened` holds the decoded photographs, masks and maps of the rows in
// sight; the others are as small as they came.
const sheets = document.querySelector('.sheets');
const palette = JSON.parse(sheets?.dataset.palette ?? '[]'), heat = JSON.parse(sheets?.dataset.heat ?? '[]');
const indexOf = new Map(palette.map(([r, g, b], i) => [r << 16 | g << 8 | b, i])), ignored = palette.length - 1;
const errorColours = JSON.parse(sheets?.dataset.errors ?? '[]'), INK = [28, 30, 33];
const opened = new Map();

async function pixels(source) {
  const copy = new Image();
  copy.src = source;
  await copy.decode();
  const {naturalWidth: width, naturalHeight: height} = copy;
  const context = Object.assign(document.createElement('canvas'), {width, height})
    .getContext('2d', {willReadFrequently: true});
  context.drawImage(copy, 0, 0);
  return context.getImageData(0, 0, width, height);
}

function labelsOf({data, width, height}) {
  return Uint8Array.from({length: width * height}, (_, i) =>
    indexOf.get(data[4 * i] << 16 | data[4 * i + 1] << 8 | data[4 * i + 2]) ?? ignored);
}

// Bilinear as in the evaluation (centres of pixels, edges repeated). Level n stands for values of (n-1)/200 to n/200.
function stretch({data, width, height}, toWidth, toHeight) {
  const taps = (from, to) => Array.from({length: to}, (_, i) => {
    const centre = Math.max((i + .5) * from / to - .5, 0), first = Math.min(Math.floor(centre), from - 1);
    return [first, Math.min(first + 1, from - 1), centre - first];
  });
  const columns = taps(width, toWidth), values = new Float32Array(toWidth * toHeight);
  let place = 0;
  for (const [up, down, y] of taps(height, toHeight)) for (const [a, b, x] of columns) {
    const above = data[4 * (up * width + a)] * (1 - x) + data[4 * (up * width + b)] * x;
    const below = data[4 * (down * width + a)] * (1 - x) + data[4 * (down * width + b)] * x;
    values[place++] = (above * (1 - y) + below * y - .5) / 200;
  }
  return values;
}

async function open(row) {
  const photo = await pixels(row.style.getPropertyValue('--photo').slice(4, -1)), layers = [];
  for (const figure of all('figure[data-draw]', row)) {
    const kind = figure.dataset.draw, image = figure.querySelector('img'), raw = image && await pixels(image.src);
    const canvas = figure.querySelector('canvas') ?? make('canvas');
    Object.assign(canvas, {width: photo.width, height: photo.height});
    if (image) image.after(canvas);
    const layer = {figure, kind, canvas, klass: Number(figure.dataset.class) + 1};
    if (kind === 'map' || kind === 'walk') layer.values = stretch(raw, photo.width, photo.height);
    else if (image) layer.labels = labelsOf(raw);
    layers.push(layer);
  }
  return {photo, layers, truth: layers.find(layer => layer.kind === 'truth')?.labels};
}

function close(row) {
  for (const {kind, canvas} of opened.get(row)?.layers ?? []) kind === 'cut' ? canvas.width = 0 : canvas.remove();
  opened.delete(row);
  delete row.dataset.drawn;
}

// Background where no map exceeds the threshold, else the class of the strongest.
function cut(layers, threshold) {
  const maps = layers.filter(layer => layer.kind === 'map');
  return Uint8Array.from(maps[0].values, (_, i) => {
    let best = maps[0];
    for (const map of maps) if (map.values[i] > best.values[i]) best = map;
    return best.values[i] > threshold ? best.klass : 0;
  });
}

// Colour and opacity of every pixel over the photograph, of which `keep` of the colour and `light` of the light stay.
function compose({photo, layers}, canvas, keep, light, over) {
  const {width, height, data} = photo, image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    const [colour, opacity, lift] = over(i, i % width, Math.floor(i / width));
    const grey = .299 * data[4 * i] + .587 * data[4 * i + 1] + .114 * data[4 * i + 2];
    for (let c = 0; c < 3; c++) {
      const base = light * (keep * data[4 * i + c] + (1 - keep) * grey);
      const mixed = base * (1 - opacity) + colour[c] * opacity;
      image.data[4 * i + c] = lift ? .5 * mixed + 127.5 : mixed;
    }
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext('2d').putImageData(image, 0, 0);
}

const differs = (values, width, height, i, x, y) => values[i] !== values[x ? i - 1 : i] || values[i] !== values[y ? i - width : i]
  || values[i] !== values[x < width - 1 ? i + 1 : i] || values[i] !== values[y < height - 1 ? i + width : i];
const NONE = [[0, 0, 0], 0];

function drawMask(state, canvas, labels) {
  const {width, height} = state.photo;
  compose(state, canvas, .5, 1, (i, x, y) => {
    const label = labels[i];
    if (label === ignored) return [palette[ignored], (x + y) % 6 < 2 ? .6 : 0];
    if (!label) return NONE;
    const edge = differs(labels, width, height, i, x, y);
    return [palette[label], edge ? 1 : .6, edge];
  });
}

function drawErrors(state, canvas, labels) {
  const [found, missed, invented, wrong] = errorColours;
  compose(state, canvas, 0, 1, (i, x, y) => {
    const truth = state.truth[i], label = labels[i] === ignored ? 0 : labels[i];
    if (truth === ignored) return [INK, (x + y) % 6 < 2 ? .5 : 0];
    if (truth === label) return truth ? [found, .7] : NONE;
    return [label ? truth ? wrong : invented : missed, .7];
  });
}

function drawMap(state, canvas, values, threshold) {
  const {width, height} = state.photo, inside = threshold === undefined ? null : Uint8Array.from(values, v => v > threshold);
  compose(state, canvas, 0, .75, (i, x, y) => {
    if (inside?.[i] && differs(inside, width, height, i, x, y)) return [[255, 255, 255], 1];
    const v = Math.min(Math.max(values[i], 0), 1), place = v * (heat.length - 1), low = Math.min(Math.floor(place), heat.length - 2);
    const colour = heat[low].map((from, c) => from + (heat[low + 1][c] - from) * (place - low));
    return [colour, .85 * (.25 + .75 * Math.sqrt(v))];
  });
}

// What the bar above a row says.
function settings(bar) {
  const step = Number(bar.querySelector('input[type=range]').value);
  return {step, threshold: JSON.parse(bar.dataset.thresholds)[step], errors: bar.querySelector('.view input').checked};
}

function draw(state, {step, threshold, errors}) {
  for (const {kind, canvas, figure, labels, values} of state.layers) {
    if (kind === 'map') drawMap(state, canvas, values, threshold);
    else if (kind === 'walk') drawMap(state, canvas, values, figure.dataset.at && Number(figure.dataset.at));
    else {
      const mask = labels ?? cut(state.layers, threshold);
      if (errors && state.truth && kind !== 'truth') drawErrors(state, canvas, mask); else drawMask(state, canvas, mask);
    }
    if (kind === 'cut' && figure.dataset.iou)
      figure.querySelector('figcaption b').textContent = JSON.parse(figure.dataset.iou)[step]?.toFixed(1) ?? '';
  }
}

const barOf = row => row.closest('.sheet').querySelector('.bar');
const sight = new IntersectionObserver(entries => entries.forEach(async ({target, isIntersecting}) => {
  if (!isIntersecting) return close(target);
  if (opened.has(target) || !target.querySelector('.tiles')) return;
  opened.set(target, null);
  const state = await open(target);
  if (!opened.has(target)) return;
  opened.set(target, state);
  draw(state, settings(barOf(target)));
  target.dataset.drawn = '';
}), {rootMargin: '400px 0px'});
all('article.row').forEach(row => sight.observe(row));

for (const bar of all('.bar')) {
  const range = bar.querySelector('input[type=range]'), said = bar.querySelector('output'), back = bar.querySelector('.back');
  const thresholds = JSON.parse(bar.dataset.thresholds), miou = JSON.parse(bar.dataset.miou);
  const start = Number(bar.dataset.start), {source, list} = bar.dataset;
  const say = () => {
    const {step, threshold} = settings(bar), points = miou.length ? miou[step] - miou[start] : 0;
    const here = step === start ? source : miou.length && source
      ? `${points < 0 ? '\u2212' : '+'}${Math.abs(points).toFixed(1)} against ${thresholds[start].toFixed(2)}, ${source}` : '';
    const figure = miou.length ? `mIoU ${miou[step].toFixed(1)} on ${list}` : '';
    const words = [threshold.toFixed(2), figure].filter(Boolean).join(' \u00b7 ');
    said.replaceChildren(make('b', words), make('small', here));
    range.ariaValueText = [words, here].filter(Boolean).join(', ');
    back.hidden = step === start || !source;
  };
  let waiting = false;
  const redraw = () => {
    say();
    if (!waiting) requestAnimationFrame(() => {
      waiting = false;
      for (const [row, state] of opened) if (state && barOf(row) === bar) draw(state, settings(bar));
    });
    waiting = true;
  };
  range.addEventListener('input', redraw);
  back.addEventListener('click', () => { range.value = start; range.focus(); redraw(); });
  bar.querySelector('.view input').addEventListener('change', event => {
    bar.parentNode.classList.toggle('errors', event.target.checked);
    redraw();
  });
  bar.querySelector('select').addEventListener('change', event => {
    for (const row of all('.row', bar.parentNode))
      row.hidden = event.target.value !== '' && !row.dataset.tags.split(' ').includes(event.target.value);
  });
  say();
}

// A link to a row that a filter hides shows it.
function reveal() {
  const row = document.getElementById(location.hash.slice(1));
  if (!row?.hidden) return;
  const select = barOf(row).querySelector('select');
  select.value = '';
  select.dispatchEvent(new Event('change'));
  row.scrollIntoView();
}
addEventListener('hashchange', reveal);

// A row enlarged; arrow keys go to its neighbours.
const zoom = document.getElementById('zoom');
async function enlarge(row) {
  const copy = row.cloneNode(true), shut = make('button', 'Close'), title = make('p');
  for (const canvas of all('img + canvas', copy)) canvas.remove();
  shut.addEventListener('click', () => zoom.close());
  title.append(row.querySelector('button').textContent, shut);
  zoom.replaceChildren(title, copy.querySelector('.tiles'));
  zoom.row = row;
  for (const name of ['--photo', '--r']) zoom.style.setProperty(name, row.style.getPropertyValue(name));
  if (!zoom.open) zoom.showModal();
  const state = await open(zoom);
  if (zoom.row === row) draw(state, settings(barOf(row)));
}
zoom.addEventListener('keydown', event => {
  const step = {ArrowLeft: -1, ArrowRight: 1}[event.key], rows = all('article.row:not([hidden]):has(.tiles)');
  const next = step && rows[rows.indexOf(zoom.row) + step];
  if (next) enlarge(next);
});
document.addEventListener('click', event => {
  if (event.target === zoom) return zoom.close();
  const row = event.target.closest('article.row');
  if (row?.querySelector('.tiles') && event.target.closest('.pic, button')) enlarge(row);
});
addEventListener('beforeprint', () => all('details').forEach(part => { part.open = true; }));
