// The page: a picture in, a caption that grows, and light on what each word attends to.
// Words enter the page as text (textContent), never as markup.
import * as ort from './ort/ort.wasm.min.mjs'
import {Captioner} from './search.js'
import {camera} from './camera.js'
import {gridCells, networkInput, readPicture, sceneFeatures} from './pixels.js'

ort.env.wasm.wasmPaths = new URL('./ort/', import.meta.url).href
ort.env.wasm.numThreads = 1                                       // more need special headers of the server

const $ = id => document.getElementById(id)
const UNLIT = new Set(`a an the of on in at to by for from with and or but as than that this these those there it its is are was
  were be been being has have had his her their he she they some`.split(/\s+/))   // words that name nothing in a picture
const calm = matchMedia('(prefers-reduced-motion: reduce)').matches
const wait = ms => new Promise(done => setTimeout(done, calm ? 0 : ms))
const make = (tag, parent, text = '') => {
  const element = document.createElement(tag)
  element.textContent = text
  parent?.append(element)
  return element
}

let page, loading                                                 // page.json, and the promise of a model
let model, shown = {}                                             // shown: picture, features, beams, the current word
let turn = 0                                                      // a newer request stops an older one
let pace = 0                                                      // ms between two words; the first caption does not wait

// ---- features -------------------------------------------------------------------------------------------------------

async function featuresOf(picture) {
  const {extractor} = page, how = extractor.of ?? extractor           // `of`: what a ReducedExtractor reduces
  if (how.extractor !== 'BackboneExtractor') return sceneFeatures(picture, how)
  const input = new ort.Tensor('float32', networkInput(picture, how), [1, 3, how.size, how.size])
  const {backbone} = await loading, out = await backbone.run({[backbone.inputNames[0]]: input})
  const [rows, global] = backbone.outputNames.map(name => out[name])
  const [, n, width] = rows.dims, whole = extractor.of ? [[0, 0, picture.width, picture.height]] : []   // its first row
  const side = Math.round((n - whole.length)**.5), square = side*side === n - whole.length && how.crop === 'squeeze'
  const boxes = square ? [...whole, ...gridCells(side, picture.width, picture.height)] : null
  return {rows: n, width, data: rows.data, global: global?.data, boxes}
}

// Everything at once, without the page: for tests, and for pages of your own.
export async function describe(source, options) {
  const features = await featuresOf(await readPicture(source)), beams = await model.search(features, options)
  return {features, beams, text: model.text(beams[0]).join(' ')}
}

// ---- drawing --------------------------------------------------------------------------------------------------------

function bitmapOf({width, height, data}) {
  const rgba = new ImageData(width, height)
  for (let i = 0; i < width*height; i++) rgba.data.set([data[3*i], data[3*i + 1], data[3*i + 2], 255], 4*i)
  const canvas = new OffscreenCanvas(width, height)
  canvas.getContext('2d', CPU).putImageData(rgba, 0, 0)
  return canvas
}

const CPU = {willReadFrequently: true}                            // of so few pixels the processor is sooner done

// The picture under a dark sheet; every region lets light through by its share of the word's attention.
function drawLook(canvas, look, side) {
  const {picture, bitmap, features} = shown, k = side/Math.max(picture.width, picture.height)
  canvas.width = Math.max(1, Math.round(picture.width*k))
  canvas.height = Math.max(1, Math.round(picture.height*k))
  const brush = canvas.getContext('2d', CPU), sheet = new OffscreenCanvas(canvas.width, canvas.height), dark = sheet.getContext('2d', CPU)
  const coarse = picture.width <= 128                           // of such a picture every pixel is shown
  canvas.classList.toggle('coarse', coarse)
  brush.imageSmoothingEnabled = !coarse
  brush.drawImage(bitmap, 0, 0, canvas.width, canvas.height)
  if (!look || !features.boxes) return
  dark.fillStyle = 'rgba(0, 0, 0, .75)'
  dark.fillRect(0, 0, canvas.width, canvas.height)
  dark.globalCompositeOperation = 'destination-out'
  const top = Math.max(...look) || 1, order = look.map((w, i) => i).sort((a, b) => look[a] - look[b])
  for (const i of order) {
    const box = features.boxes[i], [x1, y1, x2, y2] = box.map(x => x*k)
    const whole = (box[2] - box[0])*(box[3] - box[1]) > .9*picture.width*picture.height     // it would outshine the others
    dark.fillStyle = `rgba(0, 0, 0, ${look[i]/top/(whole ? 2 : 1)})`
    if (look[i] > .02*top) dark.fillRect(x1, y1, x2 - x1, y2 - y1)
  }
  brush.drawImage(sheet, 0, 0)
}

// A word that names nothing in the picture has no light.
const lightOf = (text, look) => look && UNLIT.has(text) ? look.map(() => 0) : look

const percent = logProb => `${Math.round(100*Math.exp(logProb))} %`

function drawSentence() {
  const {beams, word} = shown, beam = beams[0], words = model.text(beam), focus = document.activeElement?.dataset?.word
  $('sentence').replaceChildren()
  words.forEach((text, i) => {
    const button = make('button', $('sentence'), text)
    make('small', button, percent(beam.logProbs[i]))
    button.dataset.word = i
    button.setAttribute('aria-pressed', i === word)
    button.onclick = () => show(i)
    if (focus === `${i}`) button.focus()
  })
  const dark = UNLIT.has(words[word]) ? `“${words[word]}” names nothing in the picture, so it has no light. ` : ''
  $('note').textContent = `${dark}Log-probability of the caption: ${beam.score.toFixed(2)}.`
}

// The likeliest words at this place; a click puts one there and lets the model go on.
function drawChoices() {
  const {beams, word} = shown, beam = beams[0]
  $('choices-title').textContent = `Likeliest words at place ${word + 1}; choose one, and the model goes on`
  $('choices').replaceChildren()
  for (const {id, logProb} of beam.choices[word] ?? []) {
    const line = make('div', $('choices')), text = id === 0 ? 'end' : page.vocab[id]
    line.className = 'choice'
    const button = make('button', line, text)
    button.onclick = () => caption({prefix: [...beam.ids.slice(0, word), id], word})
    const bar = make('span', make('span', line))
    bar.className = 'bar'
    bar.style.setProperty('width', `${100*Math.exp(logProb)}%`)
    make('small', line, percent(logProb))
  }
}

function drawStrip() {
  const beam = shown.beams[0]
  $('strip').replaceChildren()
  if (!beam.looks[0]) return
  model.text(beam).forEach((text, i) => {
    const figure = make('figure', $('strip')), canvas = make('canvas', figure)
    canvas.setAttribute('role', 'img')
    canvas.setAttribute('aria-label', `where the model looks at the word ${text}`)
    make('figcaption', figure, text)
    drawLook(canvas, lightOf(text, beam.looks[i]), 80)
  })
}

function show(word) {
  const beam = shown.beams[0], words = model.text(beam)
  shown.word = Math.max(0, Math.min(word, words.length - 1))
  drawLook($('picture'), lightOf(words[shown.word], beam.looks[shown.word]), 320)
  $('picture').setAttribute('aria-label', `the picture; lit: where the model looks at the word ${words[shown.word] ?? ''}`)
  drawSentence()
  drawChoices()
}

function drawBeams() {
  $('beams').replaceChildren()
  for (const b of shown.beams) make('li', $('beams'), `${b.score.toFixed(2)}  ${model.text(b).join(' ')}${b.ended ? '' : ' …'}`)
  $('beams-part').hidden = shown.beams.length < 2
}

// ---- what happens ---------------------------------------------------------------------------------------------------

// Caption the current picture, word by word; `prefix`: words that were chosen by hand; `word`: where to stay.
async function caption({prefix = [], word} = {}) {
  const mine = ++turn, width = +$('width').value
  let drawn = -Infinity
  const beams = await model.search(shown.features, {width, prefix, report: async found => {
    if (mine !== turn) throw new Error('stopped')
    shown.beams = found
    if (!pace && performance.now() - drawn < 150) return            // drawing every word takes longer than finding it
    drawn = performance.now()
    show(found[0].ids.length - 1)
    drawBeams()
    await wait(pace)
  }}).catch(error => { if (error.message !== 'stopped') throw error })
  if (!beams || mine !== turn) return
  pace = 40
  shown.beams = beams
  show(word ?? Math.max(0, model.text(beams[0]).findIndex(text => !UNLIT.has(text))))
  drawStrip()
  drawBeams()
  say(`Caption: ${model.text(beams[0]).join(' ')}`)
}

function say(text, failed = false) {
  $('status').textContent = text
  $('status').className = failed ? 'failed' : ''
}

async function open(source, chosen = null) {
  const mine = ++turn
  try {
    for (const b of $('samples').children) b.setAttribute('aria-pressed', b === chosen)
    const picture = await readPicture(source).catch(e => { throw e.message?.startsWith('This') ? e : new Error('This file is no picture that the browser can read.') })
    if (model) say('The model is looking …')
    const next = {picture, bitmap: bitmapOf(picture), features: await featuresOf(picture), beams: [], word: 0}
    model = await loading
    if (mine !== turn) return
    shown = next
    $('result').hidden = false
    await caption()
  } catch (error) { say(error.message, true) }
}

async function openSample(button, file) { await open(await (await fetch(`pictures/${file}`)).blob(), button) }

function listen() {
  $('file').onchange = () => { if ($('file').files[0]) open($('file').files[0]) }
  camera($('camera'), open)
  $('width').onchange = () => { if (shown.features) caption() }
  const drop = $('drop')
  addEventListener('dragover', e => { e.preventDefault(); drop.classList.add('over') })
  addEventListener('dragleave', () => drop.classList.remove('over'))
  addEventListener('drop', e => {
    e.preventDefault()
    drop.classList.remove('over')
    if (e.dataTransfer.files[0]) open(e.dataTransfer.files[0])
  })
}

// What is known before the model is: title, sample pictures; the first of these is opened.
function introduce(told) {
  page = told
  document.title = page.title
  document.querySelector('h1').textContent = page.title
  $('about').textContent = `${page.about} The network runs in ONNX Runtime Web ${page.runtime} (MIT licence, see ort/LICENSE).`
  $('width').value = [1, 2, 3, 5].includes(page.beam_size) ? page.beam_size : 3
  for (const {file, alt} of page.pictures) {
    const button = make('button', $('samples')), image = make('img', button)
    image.src = `pictures/${file}`
    image.alt = alt
    image.onload = () => image.classList.toggle('coarse', image.naturalWidth <= 128)
    button.onclick = () => openSample(button, file)
  }
  listen()
  return $('samples').firstChild?.onclick()
}

async function start() {
  let first
  loading = Captioner.open(ort, '.', told => { first = introduce(told) })
    .catch(error => { throw new Error(`The model could not be loaded: ${error.message}`) })
  try { model = await loading } catch (error) { return say(error.message, true) }
  if (turn === 0) say('Choose a picture.')
  await first
}

window.xmodaler = {describe, ready: start()}                       // for tests
