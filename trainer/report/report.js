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

// Pictures, drawn as trainer/report/overlays.py draws them. `opened` holds the decoded photographs, masks and maps of the rows in
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
  const photo = await pixels(row.style.getPropertyValue('--photo').slice(4, -1)), {width, height} = photo, layers = [];
  for (const figure of all('figure[data-draw]', row)) {
    const kind = figure.dataset.draw, image = figure.querySelector('img'), raw = image && await pixels(image.src);
    const layer = {figure, kind, canvas: figure.querySelector('canvas') ?? make('canvas'), klass: Number(figure.dataset.class) + 1};
    if (kind === 'map' || kind === 'walk') layer.values = stretch(raw, width, height);
    else if (image) layer.labels = labelsOf(raw);
    layers.push(layer);
  }
  return {photo, width, height, layers, truth: layers.find(layer => layer.kind === 'truth')?.labels, bases: {}};
}

function close(row) {
  for (const {kind, canvas} of opened.get(row)?.layers ?? []) kind === 'cut' ? canvas.width = 0 : canvas.remove();
  opened.delete(row);
  delete row.dataset.drawn;
}

// The photograph with a share of its colour and of its light.
function muted({photo: {data}, bases}, keep, light) {
  return bases[[keep, light]] ??= data.map((value, i) => {
    const p = i - i % 4;
    return light * (keep * value + (1 - keep) * (.299 * data[p] + .587 * data[p + 1] + .114 * data[p + 2]));
  });
}

// Every pixel has a kind; `table` has red, green, blue and opacity of each kind over the photograph.
function paint({width, height}, {figure, canvas}, base, kinds, table) {
  const image = new ImageData(width, height), {data} = image;
  for (let i = 0, p = 0; i < kinds.length; i++, p += 4) {
    const t = 4 * kinds[i], opacity = table[t + 3];
    for (let c = 0; c < 3; c++) data[p + c] = base[p + c] * (1 - opacity) + table[t + c] * opacity;
    data[p + 3] = 255;
  }
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, {width, height});
  if (!canvas.parentNode) figure.querySelector('.pic').append(canvas);
  canvas.getContext('2d').putImageData(image, 0, 0);
}

// What `kindOf` says of every pixel, given its place.
function kindsOf({width, height}, kindOf) {
  const kinds = new Uint16Array(width * height);
  for (let y = 0, i = 0; y < height; y++) for (let x = 0; x < width; x++, i++) kinds[i] = kindOf(i, x, y);
  return kinds;
}

const hatched = (x, y) => (x + y) % 6 < 2;
const differs = ({width, height}, values, i, x, y) => (x > 0 && values[i] !== values[i - 1])
  || (x < width - 1 && values[i] !== values[i + 1]) || (y > 0 && values[i] !== values[i - width])
  || (y < height - 1 && values[i] !== values[i + width]);

// Labels: kind 0 is nothing, then each label, then each label's contour.
const labelTable = Float32Array.from([0, 0, 0, 0, ...palette.slice(1).flatMap(colour => [...colour, .6]),
  ...palette.flatMap(colour => [...colour.map(value => .5 * value + 127.5), 1])]);
function drawLabels(state, layer, labels) {
  paint(state, layer, muted(state, .5, 1), kindsOf(state, (i, x, y) => {
    const label = labels[i];
    if (label === ignored) return hatched(x, y) ? label : 0;
    return label && differs(state, labels, i, x, y) ? palette.length + label : label;
  }), labelTable);
}

// Errors: nothing, found, missed, invented, wrong class, not known.
const errorTable = Float32Array.from([0, 0, 0, 0, ...errorColours.flatMap(colour => [...colour, .7]), ...INK, .5]);
function drawErrors(state, layer, labels) {
  paint(state, layer, muted(state, 0, 1), kindsOf(state, (i, x, y) => {
    const truth = state.truth[i], label = labels[i] === ignored ? 0 : labels[i];
    if (truth === ignored) return hatched(x, y) ? 5 : 0;
    if (truth === label) return truth ? 1 : 0;
    return label ? truth ? 4 : 3 : 2;
  }), errorTable);
}

// Maps: 512 levels, then the line around what exceeds the threshold.
const mapTable = Float32Array.from([...Array(512).keys()].flatMap(level => {
  const v = level / 511, place = v * (heat.length - 1), low = Math.min(Math.floor(place), heat.length - 2);
  return [0, 1, 2].map(c => heat.length && heat[low][c] + (heat[low + 1][c] - heat[low][c]) * (place - low))
    .concat(.85 * (.25 + .75 * Math.sqrt(v)));
}).concat(255, 255, 255, 1));
function drawMap(state, layer, threshold) {
  const {values} = layer, inside = kindsOf(state, i => values[i] > threshold);
  paint(state, layer, muted(state, 0, .75), kindsOf(state, (i, x, y) =>
    inside[i] && differs(state, inside, i, x, y) ? 512 : Math.round(511 * Math.min(Math.max(values[i], 0), 1))), mapTable);
}

// Background where no map exceeds the threshold, else the class of the strongest.
function cut(state, threshold) {
  const maps = state.layers.filter(layer => layer.kind === 'map');
  return kindsOf(state, i => {
    let best = maps[0];
    for (let m = 1; m < maps.length; m++) if (maps[m].values[i] > best.values[i]) best = maps[m];
    return best.values[i] > threshold ? best.klass : 0;
  });
}

// What the bar above a row says.
function settings(bar) {
  const step = Number(bar.querySelector('input[type=range]').value);
  return {step, threshold: JSON.parse(bar.dataset.thresholds)[step], errors: bar.querySelector('.view input').checked};
}

// Draws a row; only what depends on the threshold if that is all that has moved.
function draw(state, {step, threshold, errors}, moved = false) {
  for (const layer of state.layers) {
    const {kind, figure} = layer;
    if (moved && kind !== 'map' && kind !== 'cut') continue;
    if (kind === 'map') drawMap(state, layer, threshold);
    else if (kind === 'walk') drawMap(state, layer, Number(figure.dataset.at ?? NaN));
    else {
      const labels = layer.labels ?? cut(state, threshold), judged = errors && state.truth && (kind === 'mask' || kind === 'cut');
      (judged ? drawErrors : drawLabels)(state, layer, labels);
    }
    if (kind === 'cut' && figure.dataset.iou)
      figure.querySelector('figcaption b').textContent = JSON.parse(figure.dataset.iou)[step].toFixed(1);
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
  let waiting = false, whole = false;
  const redraw = event => {
    say();
    whole ||= event.type === 'change';
    if (!waiting) requestAnimationFrame(() => {
      for (const [row, state] of opened) if (state && barOf(row) === bar) draw(state, settings(bar), !whole);
      waiting = whole = false;
    });
    waiting = true;
  };
  range.addEventListener('input', redraw);
  back.addEventListener('click', event => { range.value = start; range.focus(); redraw(event); });
  bar.querySelector('.view input').addEventListener('change', event => {
    bar.parentNode.classList.toggle('errors', event.target.checked);
    redraw(event);
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
