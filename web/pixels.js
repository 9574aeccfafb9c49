// From a picture to features, with the same arithmetic as Python: the resizing of Pillow, the regions of the embedded
// scenes (xmodaler_nb.own.scenes.features), and pictures as a network expects them.
//
// A picture is {width, height, data}: red, green, blue, one byte each, row by row.

export const LARGEST = 50e6                                      // pixels; a larger picture is refused

// Read a file, blob or <img> into a picture; transparent pixels become white.
export async function readPicture(source) {
  const bitmap = await createImageBitmap(source, {colorSpaceConversion: 'none'})       // Python reads the bytes as they are
  const {width, height} = bitmap
  if (width*height > LARGEST) {
    throw new Error(`This picture has ${Math.round(width*height/1e6)} megapixels; at most ${LARGEST/1e6} are read.`)
  }
  const canvas = new OffscreenCanvas(width, height), brush = canvas.getContext('2d', {willReadFrequently: true})
  brush.drawImage(bitmap, 0, 0)
  const rgba = brush.getImageData(0, 0, width, height).data, data = new Uint8Array(3*width*height)
  for (let i = 0, j = 0; i < rgba.length; i += 4) {
    const a = rgba[i + 3]
    for (let c = 0; c < 3; c++) data[j++] = Math.floor((rgba[i + c]*a + 255*(255 - a) + 127)/255)
  }
  return {width, height, data}
}

// ---- resizing, as Pillow does it: whole-number weights, first across, then down -------------------------------------

const BOX = {reach: .5, weight: x => x > -.5 && x <= .5 ? 1 : 0}
const BICUBIC = {reach: 2, weight: x => {
  x = Math.abs(x)
  if (x < 1) return (1.5*x - 2.5)*x*x + 1
  return x < 2 ? ((-.5*x + 2.5)*x - 4)*x + 2 : 0
}}

// For each of `size` new pixels: the first old pixel that counts, and the weights from there on, in 1/2^22.
function weights(old, size, filter) {
  const scale = old/size, wide = Math.max(scale, 1), reach = filter.reach*wide
  return Array.from({length: size}, (_, i) => {
    const centre = (i + .5)*scale
    const first = Math.max(0, Math.trunc(centre - reach + .5)), last = Math.min(old, Math.trunc(centre + reach + .5))
    const w = Array.from({length: last - first}, (_, j) => filter.weight((j + first - centre + .5)/wide))
    const sum = w.reduce((a, b) => a + b, 0)
    return {first, w: w.map(x => Math.trunc(x/sum*2**22 + (x < 0 ? -.5 : .5)))}
  })
}

const toByte = x => Math.max(0, Math.min(255, Math.floor(x/2**22)))

function resizeRows({width, height, data}, size, filter) {
  const out = new Uint8Array(3*size*height), table = weights(width, size, filter)
  for (let y = 0; y < height; y++) for (let x = 0; x < size; x++) for (let c = 0; c < 3; c++) {
    const {first, w} = table[x]
    let sum = 2**21
    for (let j = 0; j < w.length; j++) sum += w[j]*data[3*(y*width + first + j) + c]
    out[3*(y*size + x) + c] = toByte(sum)
  }
  return {width: size, height, data: out}
}

function resizeColumns({width, height, data}, size, filter) {
  const out = new Uint8Array(3*width*size), table = weights(height, size, filter)
  for (let y = 0; y < size; y++) for (let i = 0; i < 3*width; i++) {
    const {first, w} = table[y]
    let sum = 2**21
    for (let j = 0; j < w.length; j++) sum += w[j]*data[3*width*(first + j) + i]
    out[3*width*y + i] = toByte(sum)
  }
  return {width, height: size, data: out}
}

export function resize(picture, width, height, filter = BOX) {
  if (width !== picture.width) picture = resizeRows(picture, width, filter)
  return height === picture.height ? picture : resizeColumns(picture, height, filter)
}

// ---- pictures as a network expects them -----------------------------------------------------------------------------

// (3, size, size): squeezed to a square, or the middle square; colours minus `mean`, divided by `std`.
export function networkInput(picture, {size, mean, std, crop}) {
  let left = 0, top = 0
  if (crop === 'centre') {
    const k = size/Math.min(picture.width, picture.height), side = n => Math.max(size, roundEven(n*k))
    picture = resize(picture, side(picture.width), side(picture.height), BICUBIC)
    left = Math.floor((picture.width - size)/2)
    top = Math.floor((picture.height - size)/2)
  } else picture = resize(picture, size, size, BICUBIC)
  const out = new Float32Array(3*size*size)
  for (let c = 0, i = 0; c < 3; c++) for (let y = 0; y < size; y++) for (let x = 0; x < size; x++, i++) {
    out[i] = (picture.data[3*((y + top)*picture.width + x + left) + c]/255 - mean[c])/std[c]
  }
  return out
}

// Boxes of a side × side grid in pixels of the picture.
export function gridCells(side, width, height) {
  return Array.from({length: side*side}, (_, i) => {
    const x = i % side, y = Math.floor(i/side)
    return [x*width/side, y*height/side, (x + 1)*width/side, (y + 1)*height/side]
  })
}

// ---- the regions of a scene -----------------------------------------------------------------------------------------

const range = n => Array.from({length: n}, (_, i) => i)
const sum = a => { let s = 0; for (const x of a) s += x; return s }
const sorted = a => Float64Array.from(a).sort()
const roundEven = x => { const f = Math.floor(x); return x - f === .5 ? f + Math.abs(f % 2) : Math.round(x) }

// The longer side becomes 64 pixels.
function shrink(picture, work = 64) {
  const {width: w, height: h} = picture
  if (Math.max(h, w) === work && Math.min(h, w) >= 8) return picture
  const k = work/Math.max(h, w), side = n => Math.max(8, Math.trunc(n*k + .5))
  return resize(picture, side(w), side(h))
}

// A guess at the picture without its objects: each row goes from the median of its left end to that of its right end.
function background({width: w, height: h, data}, border = 3) {
  const ends = [0, w - Math.min(border, w)].map(start => {
    const medians = range(h).map(y => range(3).map(c => {
      const n = Math.min(border, w)
      return sorted(range(n).map(x => data[3*(y*w + start + x) + c]))[n >> 1]
    }))
    const at = y => medians[Math.max(0, Math.min(h - 1, y))]
    return range(h).map(y => range(3).map(c => sorted(range(7).map(i => at(y + i - 3)[c]))[3]))
  })
  return (x, y, c) => {
    const t = w === 1 ? 0 : x === w - 1 ? 1 : x*(1/(w - 1))
    return ends[0][y][c]*(1 - t) + ends[1][y][c]*t
  }
}

// Connected foreground pixels, the largest pieces first: foreground (bytes) and pieces (bytes each).
function findRegions(picture, {threshold, min_area, max_regions}) {
  const {width: w, height: h, data} = picture, behind = background(picture), foreground = new Uint8Array(w*h), pieces = []
  for (let i = 0; i < w*h; i++) {
    let d = 0
    for (let c = 0; c < 3; c++) d += (data[3*i + c] - behind(i % w, Math.floor(i/w), c))**2
    foreground[i] = d > threshold**2
  }
  const seen = new Uint8Array(w*h)
  for (let start = 0; start < w*h; start++) {
    if (!foreground[start] || seen[start]) continue
    const mask = new Uint8Array(w*h), stack = [start]
    let area = 0
    seen[start] = 1
    while (stack.length) {
      const i = stack.pop(), x = i % w
      mask[i] = 1
      area++
      for (const j of [x ? i - 1 : -1, x < w - 1 ? i + 1 : -1, i - w, i + w]) {
        if (j >= 0 && j < w*h && foreground[j] && !seen[j]) { seen[j] = 1; stack.push(j) }
      }
    }
    if (area >= min_area) pieces.push({mask, area})
  }
  const kept = pieces.sort((a, b) => b.area - a.area).slice(0, max_regions).map(p => p.mask)
  return {masks: kept, foreground: Uint8Array.from(foreground, (_, i) => kept.some(m => m[i]))}
}

function maskBox(mask, w, h) {
  let box = [w, h, 0, 0]
  mask.forEach((on, i) => {
    const x = i % w, y = Math.floor(i/w)
    if (on) box = [Math.min(box[0], x), Math.min(box[1], y), Math.max(box[2], x + 1), Math.max(box[3], y + 1)]
  })
  return box
}

// Where a region is and how large (16 numbers), and how it stands to its neighbour (10).
function boxNumbers(box, h, w, area, rank) {
  const [x1, y1, x2, y2] = [box[0]/w, box[1]/h, box[2]/w, box[3]/h], bw = x2 - x1, bh = y2 - y1, whole = bw*bh >= 1
  return [x1, y1, x2, y2, x1 + x2 - 1, y1 + y2 - 1, 2*bw, 2*bh, 4*bw*bh, whole ? area/(h*w) : 8*area/(h*w), +whole,
          Math.min((bw*w)/(bh*h), 3) - 1, whole ? 0 : 6*Math.max(bw, bh) - 1.6, 2*(rank === 0), 2*(rank === 1), 2*(rank >= 2)]
}

function neighbourNumbers(box, other, h, w) {
  if (!other) return new Array(10).fill(0)
  const dx = (box[0] + box[2] - other[0] - other[2])/w, dy = (box[1] + box[3] - other[1] - other[3])/h
  const gx = Math.max(box[0] - other[2], other[0] - box[2])/w, gy = Math.max(box[1] - other[3], other[1] - box[3])/h
  const gap = 64*Math.max(gx, gy), steps = [0, 2.5, 5.5].map(k => Math.min(Math.max((gap - k)/2, -1), 1))
  return [1, dx, dy, Math.abs(dx) - Math.abs(dy), 2*gx, 2*gy, ...steps, +(gy > gx)]
}

// Mean, spread and histogram of colours (33); the mask in 8 × 8 cells (70); lightness and its changes (27).
function colourNumbers(pixels) {
  const n = pixels.length, mean = [0, 1, 2].map(c => sum(pixels.map(p => p[c]))/n)
  const spread = [0, 1, 2].map(c => 3*Math.sqrt(sum(pixels.map(p => (p[c] - mean[c])**2))/n))
  const shares = pixels.map(p => p.map(x => [0, .5, 1].map(centre => Math.max(0, 1 - 2*Math.abs(x - centre)))))
  const histogram = new Array(27).fill(0)
  for (const [r, g, b] of shares) for (let i = 0; i < 27; i++) histogram[i] += r[Math.floor(i/9)]*g[Math.floor(i/3) % 3]*b[i % 3]
  return [...mean.map(x => 2*x - 1), ...spread, ...histogram.map(x => 2*(x/n))]
}

// An h × w table in n × n cells, each the mean of m × m samples.
function cells(at, h, w, n, m) {
  return range(n*n).map(i => {
    const y = Math.floor(i/n)*m, x = (i % n)*m, pick = (k, size) => Math.floor(k*size/(n*m))
    return sum(range(m*m).map(j => at(pick(y + Math.floor(j/m), h), pick(x + j % m, w))))/(m*m)
  })
}

function shapeNumbers(mask, h, w) {
  const c = cells((y, x) => mask[y*w + x], h, w, 8, 2), total = sum(c) + 1e-9, p = i => (i - 3.5)/4
  const moment = f => sum(c.map((v, i) => v*f(p(i % 8), p(Math.floor(i/8)))))/total
  const mx = moment(x => x), my = moment((x, y) => y)
  const spread = [moment(x => (x - mx)**2), moment((x, y) => (y - my)**2), 2*moment((x, y) => (y - my)*(x - mx))]
  return [...c.map(v => 2*v - 1), 2*total/64 - 1, 3*mx, 3*my, ...spread.map(v => 3*v)]
}

function textureNumbers(light, mask, h, w) {
  const n = sum(mask) + 1e-9, mean = sum(light.map((v, i) => v*mask[i]))/n
  const change = (dy, dx) => {
    if (h <= dy || w <= dx) return 0
    let total = 0, count = 0
    for (let y = dy; y < h; y++) for (let x = dx; x < w; x++) {
      const i = y*w + x, j = i - dy*w - dx
      if (mask[i] && mask[j]) { total += Math.abs(light[i] - light[j]); count++ }
    }
    return 8*total/(count + 1e-9)
  }
  const inside = sorted(light.filter((_, i) => mask[i])), share = q => inside[Math.floor(inside.length*q/100)]
  const relative = cells((y, x) => (light[y*w + x] - mean)*mask[y*w + x], h, w, 4, 4)
  return [...relative.map(v => 6*v), change(1, 0), change(0, 1), change(2, 0), change(0, 2), change(4, 0), 2*mean - 1,
          ...[5, 25, 50, 75, 95].map(q => 4*(share(q) - mean))]
}

// One row of 156 numbers for the pixels of `mask` inside `box`, rounded to four digits as in Python.
function describe({width: w, height: h, data}, mask, box, other, rank) {
  const [x1, y1, x2, y2] = box, bw = x2 - x1, bh = y2 - y1
  const index = range(bw*bh).map(i => (y1 + Math.floor(i/bw))*w + x1 + i % bw)
  let inside = index.map(i => mask[i])
  if (!inside.some(Boolean)) inside = inside.map(() => 1)                    // nothing there: describe all of the box
  const colour = index.map(i => [data[3*i]/255, data[3*i + 1]/255, data[3*i + 2]/255])
  const light = colour.map(([r, g, b]) => (r + g + b)/3)
  const numbers = [...boxNumbers(box, h, w, sum(inside), rank), ...neighbourNumbers(box, other, h, w),
                   ...colourNumbers(colour.filter((_, i) => inside[i])), ...shapeNumbers(inside, bh, bw),
                   ...textureNumbers(light, inside, bh, bw)]
  return numbers.map(x => roundEven(x*1e4)/1e4)
}

const gridBoxes = (h, w, n) => range(n*n).map(i => {
  const y = Math.floor(i/n), x = i % n, edge = (k, size) => Math.floor(k*size/n)
  return [edge(x, w), edge(y, h), Math.max(edge(x + 1, w), edge(x, w) + 1), Math.max(edge(y + 1, h), edge(y, h) + 1)]
})

// The features of a scene: first the whole picture, then regions and cells; boxes in pixels of the picture.
export function sceneFeatures(picture, options) {
  const small = shrink(picture), {width: w, height: h} = small, {masks, foreground} = findRegions(small, options)
  const boxes = masks.map(m => maskBox(m, w, h))
  let rows = masks.map((m, i) => ({box: boxes[i], mask: m, other: boxes.length > 1 ? boxes[i ? 0 : 1] : null, rank: i}))
  if (options.kind === 'grid') rows = []
  let grid = options.kind === 'regions' ? [] : gridBoxes(h, w, options.grid)
  if (options.exactly) {
    const more = [5, 3, 2, 6].flatMap(n => gridBoxes(h, w, n)).filter(b => !grid.some(g => `${g}` === `${b}`))
    grid = [...grid, ...more].slice(0, Math.max(0, options.exactly - 1 - rows.length))
  }
  rows = [...rows, ...grid.map(box => ({box, mask: foreground, other: null, rank: -1}))]
  if (options.exactly) rows = rows.slice(0, options.exactly - 1)
  const whole = {box: [0, 0, w, h], mask: foreground.map(x => 1 - x), other: null, rank: -1}
  const all = [whole, ...rows], table = all.map(r => describe(small, r.mask, r.box, r.other, r.rank))
  const scale = [picture.width/w, picture.height/h, picture.width/w, picture.height/h]
  return {rows: all.length, width: table[0].length, data: Float32Array.from(table.flat()),
          boxes: all.map(r => r.box.map((x, i) => x*scale[i]))}
}
