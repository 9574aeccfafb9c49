// Words one after another: greedy decoding and beam search over two ONNX graphs.
//
//   encoder   features of a picture        -> the state before the first word
//   step      last words and their states  -> logits, next states, where the step looked
//
// Nothing here knows an architecture: page.json names what goes in and out. A state is a dictionary of tensors with
// one row per unfinished sentence; following a beam means picking rows.

const END = 0                                                   // the end mark, which also stands before the first word
const inputName = (prefix, key) => prefix + key.toLowerCase().replaceAll('.', '_')

// The rows `index` of a tensor, as a new tensor.
function pickRows(ort, tensor, index) {
  const width = tensor.data.length/tensor.dims[0]
  const data = new tensor.data.constructor(width*index.length)
  index.forEach((row, i) => data.set(tensor.data.subarray(row*width, (row + 1)*width), i*width))
  return new ort.Tensor(tensor.type, data, [index.length, ...tensor.dims.slice(1)])
}

// Logits of one row to log-probabilities; words that are never said get no chance.
export function logSoftmax(logits, silent = []) {
  let top = -Infinity, sum = 0
  for (const x of logits) top = Math.max(top, x)
  for (const x of logits) sum += Math.exp(x - top)
  const out = Float64Array.from(logits, x => x - top - Math.log(sum))
  for (const id of silent) out[id] = -Infinity
  return out
}

// The ids of the k likeliest words, best first; of equals the lower id.
export function likeliest(logProbs, k) {
  const best = []
  logProbs.forEach((x, id) => {
    if (best.length === k && !(x > logProbs[best[k - 1]])) return
    let place = best.length
    while (place && x > logProbs[best[place - 1]]) place--
    best.splice(place, 0, id)
    if (best.length > k) best.pop()
  })
  return best
}

// The bytes of a file that was packed with gzip; a server may have unpacked it on the way.
export async function unpacked(address) {
  const answer = await fetch(address)
  if (!answer.ok) throw new Error(`${address}: ${answer.status} ${answer.statusText}`)
  const bytes = await answer.arrayBuffer(), [first, second] = new Uint8Array(bytes, 0, 2)
  if (first !== 0x1f || second !== 0x8b) return bytes
  return await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'))).arrayBuffer()
}

// Log-probabilities under the rules of page.json: a word that must not come after the words `ids` gets no chance.
export function obey(rules, logProbs, ids) {
  const out = logProbs.slice(), n = rules.no_repeat_ngram, last = ids.slice(ids.length - n + 1)
  for (const id of rules.banned) out[id] = -Infinity
  if (n) for (let i = 0; i + n <= ids.length; i++) {
    if (last.every((id, j) => id === ids[i + j])) out[ids[i + n - 1]] = -Infinity     // these n words stand there already
  }
  const end = ids.length < rules.min_length ? -Infinity : out[END]
  if (rules.max_length && ids.length >= rules.max_length) out.fill(-Infinity)
  out[END] = -Infinity
  const stuck = end === -Infinity && out.every(x => x === -Infinity)                   // no word is left: end here
  out[END] = stuck ? logProbs[END] : end
  return out
}

export class Captioner {
  constructor(ort, page, encoder, step, backbone) {
    Object.assign(this, {ort, page, encoder, step, backbone})
  }

  // Everything from a folder that `xm-export --web` wrote. `told` gets page.json before the long part, the graphs.
  static async open(ort, folder = '.', told = () => {}) {
    const page = await (await fetch(`${folder}/page.json`)).json()
    const names = ['encoder', 'step', ...(page.backbone ? ['backbone'] : [])], sessions = []
    const files = names.map(name => unpacked(`${folder}/${name}.onnx`))                // all on their way at once
    const runtime = unpacked(`${folder}/ort/${page.runtime_file}`)
    told(page)
    ort.env.wasm.wasmBinary = await runtime
    for (const bytes of await Promise.all(files)) {
      sessions.push(await ort.InferenceSession.create(new Uint8Array(bytes), {executionProviders: ['wasm']}))
    }
    return new Captioner(ort, page, ...sessions)
  }

  // What the encoder reads, for one picture: features {rows, width, data} and perhaps a global vector.
  encoderInput(key, features) {
    const {ort, page} = this
    const n = Math.min(features.rows, page.max_rows || features.rows)
    if (key === 'ATT_FEATS') return new ort.Tensor('float32', features.data.subarray(0, n*features.width), [1, n, features.width])
    if (key === 'ATT_MASKS') return new ort.Tensor('float32', new Float32Array(n).fill(1), [1, n])
    if (key === 'GLOBAL_FEATS') return new ort.Tensor('float32', features.global, [1, 1, features.global.length])
    const length = page.max_seq_len                             // G_TOKENS_TYPE: these are words that are written
    return new ort.Tensor('int64', new BigInt64Array(length).fill(1n), [1, length])
  }

  // The state before the first word.
  async begin(features) {
    const inputs = {}
    for (const key of this.page.inputs) inputs[inputName('inputs_', key)] = this.encoderInput(key, features)
    const out = await this.encoder.run(inputs)
    return Object.fromEntries(this.page.state.map((key, i) => [key, out[this.encoder.outputNames[i]]]))
  }

  // One word further for every row: log-probabilities, states, and the attention over the regions.
  async next(words, state, t) {
    const {ort, page} = this
    const inputs = {tokens: new ort.Tensor('int64', BigInt64Array.from(words, BigInt), [words.length]),
                    clock: new ort.Tensor('float32', new Float32Array(t), [t])}      // its length is the time
    for (const key of page.state) inputs[inputName('state_', key)] = state[key]
    const known = Object.fromEntries(this.step.inputNames.map(name => [name, inputs[name]]))
    const [logits, ...changed] = await this.step.run(known).then(out => this.step.outputNames.map(name => out[name]))
    const after = {...state, ...Object.fromEntries(page.new_state.map((key, i) => [key, changed[i]]))}
    const width = logits.data.length/words.length, looks = after.ATT_WEIGHTS, n = looks ? looks.data.length/words.length : 0
    delete after.ATT_WEIGHTS
    return words.map((_, i) => ({
      logProbs: logSoftmax(logits.data.subarray(i*width, (i + 1)*width), page.silent),
      look: looks ? Array.from(looks.data.subarray(i*n, (i + 1)*n)) : null,
    })).concat({state: after})
  }

  // What beams compete by: the sum of the log-probabilities, divided by a power of the length.
  rank(beam) { return beam.score/beam.ids.length**this.page.length_penalty }

  // Is the best sentence known for certain? Scores only fall, so an ended one that is ahead stays ahead.
  certain(beams) {
    const ended = beams.filter(b => b.ended), going = beams.filter(b => !b.ended)
    if (!going.length) return true
    if (!ended.length) return false
    const penalty = this.page.length_penalty, last = this.page.max_seq_len
    const reach = b => penalty > 0 ? b.score/last**penalty : this.rank(b)
    return Math.max(...ended.map(b => this.rank(b))) > Math.max(...going.map(reach)) + 1e-4
  }

  // The beams after one more word: every sentence offers its likeliest words, and the best offers stay.
  offers(beam, row, width, forced) {
    if (beam.ended) return [beam]
    const allowed = obey(this.page.rules, row.logProbs, beam.ids)
    const words = forced === undefined ? likeliest(allowed, width) : [forced]
    const best = likeliest(allowed, 5).filter(id => allowed[id] > -Infinity).map(id => ({id, logProb: allowed[id]}))
    return words.filter(id => forced !== undefined || allowed[id] > -Infinity).map(id => ({
      ids: [...beam.ids, id], logProbs: [...beam.logProbs, row.logProbs[id]], looks: [...beam.looks, row.look],
      choices: [...beam.choices, best], score: beam.score + row.logProbs[id], ended: id === END, parent: beam.row,
    }))
  }

  // Search with `width` beams; width 1 is greedy decoding. `prefix`: ids of words that the sentence must begin with.
  // `report` is called after every word with the beams, best first, and may return a promise to wait for.
  async search(features, {width = 1, prefix = [], report = () => {}} = {}) {
    let state = await this.begin(features)
    let beams = [{ids: [], logProbs: [], looks: [], choices: [], score: 0, ended: false, row: 0}], words = [END]
    for (let t = 0; t < this.page.max_seq_len; t++) {
      const rows = await this.next(words, state, t)
      state = rows.pop().state
      const offered = beams.flatMap(b => this.offers(b, rows[b.row], width, prefix[t]))
      beams = offered.sort((a, b) => this.rank(b) - this.rank(a)).slice(0, width)    // sort keeps the order of equals
      await report(beams, t)
      if (this.certain(beams)) break
      const going = beams.filter(b => !b.ended)
      going.forEach((b, i) => { b.row = i })
      words = going.map(b => b.ids.at(-1))
      for (const key of this.page.state) state[key] = pickRows(this.ort, state[key], going.map(b => b.parent))
    }
    return beams
  }

  // The words of a beam, without the end mark.
  text(beam) { return beam.ids.filter(id => id !== END).map(id => this.page.vocab[id]) }
}
