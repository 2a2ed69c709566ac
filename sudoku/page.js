// FMLM+ in the browser, under the names of the Python files: the network of fmlm.py, the loop of
// sample.py, the rules of sudoku/boards.py and the two modes of toy/exact.py. One sequence at a
// time: L tokens over V words; a matrix is a Float32Array, row after row. No page is known here.
"use strict";

// -------------------------------------------------------------------------------------------------
// 1. Denoiser (fmlm.py): log delta_{s,t}(x)
// -------------------------------------------------------------------------------------------------

/** x W^T + b: x (n, k), W (m, k) as PyTorch keeps it, so that both are read along their rows. Three
 * rows of x meet three of W: nine sums that need no memory, and each number read is used thrice.
 * Where fewer are left, the last row stands in and is written again. */
function linear(x, n, W, b) {
  const k = x.length / n, m = W.length / k, out = new Float32Array(n * m);
  for (let j = 0; j < m; j += 3) {
    const j1 = Math.min(j + 1, m - 1), j2 = Math.min(j + 2, m - 1);
    const u = j * k, v = j1 * k, w = j2 * k;
    const b0 = b ? b[j] : 0, b1 = b ? b[j1] : 0, b2 = b ? b[j2] : 0;
    for (let i = 0; i < n; i += 3) {
      const i1 = Math.min(i + 1, n - 1), i2 = Math.min(i + 2, n - 1);
      const p = i * k, q = i1 * k, r = i2 * k;
      let pu = b0, pv = b1, pw = b2, qu = b0, qv = b1, qw = b2, ru = b0, rv = b1, rw = b2;
      for (let l = 0; l < k; l++) {
        const U = W[u + l], V = W[v + l], Z = W[w + l], P = x[p + l], Q = x[q + l], R = x[r + l];
        pu += P * U; pv += P * V; pw += P * Z;
        qu += Q * U; qv += Q * V; qw += Q * Z;
        ru += R * U; rv += R * V; rw += R * Z;
      }
      out[i * m + j] = pu; out[i * m + j1] = pv; out[i * m + j2] = pw;
      out[i1 * m + j] = qu; out[i1 * m + j1] = qv; out[i1 * m + j2] = qw;
      out[i2 * m + j] = ru; out[i2 * m + j1] = rv; out[i2 * m + j2] = rw;
    }
  }
  return out;
}

const silu = (h) => h.map((a) => a / (1 + Math.exp(-a)));
const relu_squared = (h) => h.map((a) => (a > 0 ? a * a : 0));

/** softmax along the rows of scores (n, m), in place. */
function softmax(scores, n) {
  const m = scores.length / n;
  for (let i = 0; i < n; i++) {
    const row = scores.subarray(i * m, (i + 1) * m), most = Math.max(...row);
    let sum = 0;
    for (let j = 0; j < m; j++) sum += row[j] = Math.exp(row[j] - most);
    for (let j = 0; j < m; j++) row[j] /= sum;
  }
  return scores;
}

/** Adaptive layer norm: (1 + scale) * LayerNorm(h) + shift. h (L, width); shift, scale: one vector
 * for every pair of times, `of[l]` says which is token l's. */
function normalize(h, shift, scale, of) {
  const L = of.length, width = h.length / L, out = new Float32Array(h.length);
  for (let l = 0; l < L; l++) {
    const row = h.subarray(l * width, (l + 1) * width);
    const mean = row.reduce((sum, a) => sum + a, 0) / width;
    const by = Math.sqrt(row.reduce((sum, a) => sum + (a - mean) ** 2, 0) / width + 1e-5);
    for (let c = 0; c < width; c++)
      out[l * width + c] = (1 + scale[of[l]][c]) * (row[c] - mean) / by + shift[of[l]][c];
  }
  return out;
}

/** h + gate * update, in place. */
function add_gated(h, gate, update, of) {
  const width = h.length / of.length;
  for (let i = 0; i < h.length; i++) h[i] += gate[of[i / width | 0]][i % width] * update[i];
}

/** Half precision to single: a sign, 5 bits of exponent, 10 of fraction. */
function widen(halves) {
  const out = new Float32Array(halves.length);
  for (let i = 0; i < halves.length; i++) {
    const exponent = halves[i] >> 10 & 31, fraction = halves[i] & 1023;
    const size = ((exponent ? 1024 : 0) + fraction) * 2 ** (Math.max(exponent, 1) - 25);
    out[i] = halves[i] >> 15 ? -size : size;
  }
  return out;
}

class Denoiser {
  /** network: {vocab_size, width, depth, heads}; coords (L, K): row, column and box of each cell;
   * shapes: [[name, rows, columns], ...], in the order in which the weights follow each other. */
  constructor({network, coords, shapes}, halves) {
    Object.assign(this, network, {coords, L: coords.length, weights: {}});
    let start = 0;
    for (const [name, rows, columns] of shapes)
      this.weights[name] = widen(halves.subarray(start, start += rows * columns));
    // relations: which pairs of cells share a row, a column, a box: (K, L, L) of 0 and 1
    this.related = coords[0].map((_, k) =>
      coords.flatMap((a) => coords.map((b) => a[k] === b[k] ? 1 : 0)));
  }

  linear(name, x, n) {
    return linear(x, n, this.weights[`${name}.weight`], this.weights[`${name}.bias`]);
  }

  /** time -> vector: sinusoids of 0.25 to 8 rad per unit, then an MLP. */
  time_embedding(name, times) {
    const angles = times.map((time) => [...Array(16).keys()].map((i) => time * 2 ** (i / 3 - 2)));
    const waves = angles.flatMap((row) => [...row.map(Math.cos), ...row.map(Math.sin)]);
    const h = this.linear(`${name}.mlp.0`, Float32Array.from(waves), times.length);
    return this.linear(`${name}.mlp.2`, silu(h), times.length);
  }

  /** softmax(q k^T / sqrt(d) + bias) v, for every head; qkv (L, 3 width) -> (L, width). */
  attention(qkv, relation) {
    const {L, width, heads, related} = this, d = width / heads, out = new Float32Array(L * width);
    for (let head = 0; head < heads; head++) {
      const q = new Float32Array(L * d), k = new Float32Array(L * d), vT = new Float32Array(d * L);
      for (let l = 0; l < L; l++)
        for (let c = 0; c < d; c++) {
          const at = l * 3 * width + head * d + c;
          q[l * d + c] = qkv[at] / Math.sqrt(d);
          k[l * d + c] = qkv[at + width];
          vT[c * L + l] = qkv[at + 2 * width];
        }
      const scores = linear(q, L, k);  // (L, L)
      related.forEach((pairs, r) => {
        const bias = relation[head * related.length + r];
        for (let i = 0; i < scores.length; i++) scores[i] += bias * pairs[i];
      });
      const seen = linear(softmax(scores, L), L, vT);  // (L, d)
      for (let l = 0; l < L; l++) out.set(seen.subarray(l * d, (l + 1) * d), l * width + head * d);
    }
    return out;
  }

  /** Attention over the tokens, then an MLP on each; shifted, scaled and gated by the times. */
  block(name, h, shared, of) {
    const {L, width, weights} = this, modulation = weights[`${name}.modulation`];
    const own = chunks(shared.map((a, i) => a + modulation[i % (6 * width)]), 6, width);
    const [shift1, scale1, gate1, shift2, scale2, gate2] = own;
    const qkv = this.linear(`${name}.qkv`, normalize(h, shift1, scale1, of), L);
    const seen = this.attention(qkv, weights[`${name}.relation`]);
    add_gated(h, gate1, this.linear(`${name}.out`, seen, L), of);
    const up = this.linear(`${name}.up`, normalize(h, shift2, scale2, of), L);
    add_gated(h, gate2, this.linear(`${name}.down`, relu_squared(up), L), of);
  }

  /** x (L, V) and s, t (L) in, log-probabilities (L, V) out. */
  forward(x, s, t) {
    const {L, width, depth, vocab_size: V, weights, coords} = this;
    // Tokens of the same (s, t) share all that the times bring: `of[l]` is the pair of token l.
    const pairs = [...new Set([...s].map((_, l) => `${s[l]} ${t[l]}`))];
    const of = [...s].map((_, l) => pairs.indexOf(`${s[l]} ${t[l]}`)), n = pairs.length;
    const [s_of, t_of] = [0, 1].map((i) => pairs.map((pair) => Number(pair.split(" ")[i])));
    const time_t = this.time_embedding("time_t", t_of);
    const when = silu(this.time_embedding("time_s", s_of).map((a, i) => a + time_t[i]));
    const evidence = this.linear("evidence", when, n), h = this.linear("embed", x, L);
    for (let i = 0; i < h.length; i++) {
      const l = i / width | 0, c = i % width;
      h[i] *= 1 + evidence[of[l] * width + c];
      coords[l].forEach((at, k) => h[i] += weights[`positions.${k}.weight`][at * width + c]);
    }
    const shared = this.linear("shared", when, n);
    for (let b = 0; b < depth; b++) this.block(`blocks.${b}`, h, shared, of);
    const [shift, scale] = chunks(this.linear("modulation", when, n), 2, width);
    const logits = this.linear("head", normalize(h, shift, scale, of), L);
    const delta = softmax(logits.map((a) => 30 * Math.tanh(a / 30)), L);  // soft-capped
    return delta.map(Math.log);
  }
}

/** The network of a page: its configuration, and its weights in half precision. */
function load(config, base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return new Denoiser(config, new Uint16Array(bytes.buffer));
}

/** (n, count * width) -> count lists of n vectors: torch's chunk along the last axis. */
function chunks(rows, count, width) {
  const n = rows.length / (count * width);
  return [...Array(count).keys()].map((j) => [...Array(n).keys()].map((i) =>
    rows.subarray((i * count + j) * width, (i * count + j + 1) * width)));
}

// -------------------------------------------------------------------------------------------------
// 2. Samplers (sample.py): draft, commit, forget
// -------------------------------------------------------------------------------------------------

/** Draft all unknown tokens with delta_{s,t}, commit those that `rule` chooses, give the rest fresh
 * noise; at most `rounds` times, and the last commits everything. given (L): -1 for unknown.
 * noise(round): (L, V). Yields, for every network pass, the tokens drafted, how sure they are, and
 * which were committed in it. */
function* refine(model, given, rounds, [s, t], rule, noise) {
  const {L, vocab_size: V} = model, known = given.map((token) => token >= 0);
  const tokens = Array.from(given), sure = new Float32Array(L).fill(1);
  for (let rounds_left = rounds; rounds_left > 0 && !known.every(Boolean); rounds_left--) {
    const x = Float32Array.from(noise(rounds - rounds_left));
    known.forEach((yes, l) => {
      if (yes) for (let v = 0; v < V; v++) x[l * V + v] = v === tokens[l] ? 1 : 0;
    });
    const [from, to] = [s, t].map((time) => known.map((yes) => yes ? 1 : time));  // token_times
    const delta = model.forward(x, from, to).map(Math.exp);
    known.forEach((yes, l) => {
      if (yes) return;
      const row = delta.subarray(l * V, (l + 1) * V);
      sure[l] = Math.max(...row);
      tokens[l] = row.indexOf(sure[l]);
    });
    const chosen = rounds_left > 1 ? rule(sure, known, rounds_left) : known.map(() => true);
    const committed = known.map((yes, l) => !yes && chosen[l]);
    committed.forEach((yes, l) => { known[l] = known[l] || yes; });
    yield {draft: [...tokens], confidence: sure.slice(), committed};
  }
}

/** The ceil(unknown / rounds left) unknown tokens of highest confidence: (L) of true and false. */
function uniform_budget(confidence, known, rounds_left) {
  const unknown = [...known.keys()].filter((l) => !known[l]);
  const surest = unknown.sort((a, b) => confidence[b] - confidence[a])
    .slice(0, Math.ceil(unknown.length / rounds_left));
  return known.map((_, l) => surest.includes(l));
}

/** Posterior Refinement: the draft is delta_{0,1}; commit what is sure given the draft, and at
 * least the uniform budget. */
function posterior_refinement(model, given, rounds, noise) {
  const threshold = Math.fround(1 - 0.05 / rounds);
  const rule = (confidence, known, rounds_left) => {
    const budget = uniform_budget(confidence, known, rounds_left);
    return budget.map((yes, l) => yes || confidence[l] >= threshold);
  };
  return refine(model, given, rounds, [0, 1], rule, noise);
}

/** The foil: delta_{0,0}, each token's marginal given the context alone; the uniform budget. */
function a_priori_confidence(model, given, rounds, noise) {
  return refine(model, given, rounds, [0, 0], uniform_budget, noise);
}

const SAMPLERS = {posterior: posterior_refinement, "a-priori": a_priori_confidence};

/** Uniforms in [0, 1) of a seed (mulberry32). */
function uniforms(seed) {
  let state = seed >>> 0;
  return () => {
    state = state + 0x6d2b79f5 | 0;
    let z = Math.imul(state ^ state >>> 15, state | 1);
    z ^= z + Math.imul(z ^ z >>> 7, z | 61);
    return ((z ^ z >>> 14) >>> 0) / 2 ** 32;
  };
}

/** noise(round): n normals by Box and Muller. Who asks with the same seed gets the same noise. */
function normals(seed, n) {
  const uniform = uniforms(seed);
  return () => Float32Array.from({length: n}, () =>
    Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()));
}

// -------------------------------------------------------------------------------------------------
// 3. Rules (sudoku/boards.py). A board is L tokens, a digit minus one each; -1 is an empty cell
// -------------------------------------------------------------------------------------------------

const DIGITS = "123456789";

/** Row, column and box of each cell. */
function coordinates({box_rows, box_cols, size}) {
  return [...Array(size * size).keys()].map((cell) => {
    const row = cell / size | 0, col = cell % size;
    return [row, col, (row / box_rows | 0) * box_rows + (col / box_cols | 0)];
  });
}

/** For each cell, the other cells that may not hold its digit. */
function peers_of(shape) {
  const coords = coordinates(shape);
  return coords.map((a, i) => [...coords.keys()].filter((j) =>
    j !== i && coords[j].some((place, k) => place === a[k])));
}

/** Which cells hold a digit that one of their peers `among` these cells holds, too. */
function clashes(shape, board, among = board.map(() => true)) {
  return peers_of(shape).map((peers, i) =>
    board[i] >= 0 && peers.some((j) => among[j] && board[j] === board[i]));
}

const valid = (shape, board) =>
  board.every((digit) => digit >= 0) && !clashes(shape, board).includes(true);

/** The characters of a puzzle that stand for cells. */
const symbols_of = (text) => [...text].filter((symbol) => !/[\s|+-]/.test(symbol));

/** A row-major puzzle, "." or "0" for empty, as tokens: {given}, or one sentence: {error}. */
function parse(shape, text) {
  const {size} = shape, symbols = symbols_of(text), digits = DIGITS.slice(0, size);
  const wrong = symbols.findIndex((symbol) => !`${digits}.0`.includes(symbol));
  const given = symbols.map((symbol) => digits.indexOf(symbol));
  if (symbols.length !== size * size)
    return {given, error: `The puzzle has ${symbols.length} cells and needs ${size * size}; ` +
      "write “.” or “0” for an empty cell."};
  if (wrong >= 0)
    return {given, error: `“${symbols[wrong]}” at row ${(wrong / size | 0) + 1}, column ` +
      `${wrong % size + 1} is no digit from 1 to ${size}; write “.” or “0” for an empty cell.`};
  return {given, error: clash_sentence(shape, given)};
}

/** Which digit stands twice, and where, in one sentence; "" if none does. */
function clash_sentence(shape, given) {
  const coords = coordinates(shape);
  for (let i = 0; i < given.length; i++)
    for (let j = 0; j < i && given[i] >= 0; j++) {
      const kind = given[i] === given[j] ? coords[i].findIndex((at, k) => at === coords[j][k]) : -1;
      if (kind >= 0)
        return `The digit ${given[i] + 1} appears twice in ${["row", "column", "box"][kind]} ` +
          `${coords[i][kind] + 1}; correct one of the clues.`;
    }
  return "";
}

/** Up to `limit` solutions, depth first, the cell with the fewest digits left first, and among them
 * a digit that only one cell of a unit can hold. null where `patience` tries decide nothing. */
function solutions(shape, given, limit = 2, patience = 20000) {
  const {size} = shape, peers = peers_of(shape), coords = coordinates(shape), found = [];
  const units = coords[0].flatMap((_, k) => [...Array(size).keys()].map((at) =>
    [...coords.keys()].filter((cell) => coords[cell][k] === at)));
  const single = (bits) => (bits & bits - 1) === 0;
  const place = (left, cell, digit) => {  // one bit; in place; false on a clash
    left[cell] = digit;
    for (const todo = [cell]; todo.length;) {
      const from = todo.pop();
      for (const peer of peers[from])
        if (left[peer] & left[from]) {
          left[peer] ^= left[from];
          if (!left[peer]) return false;
          if (single(left[peer])) todo.push(peer);
        }
    }
    return true;
  };
  const branches = (left) => {  // [[cell, digit], ...], of which one must hold; null: all is set
    const count = (bits) => bits.toString(2).replace(/0/g, "").length;
    const open = [...left.keys()].filter((cell) => !single(left[cell]));
    if (!open.length) return null;
    const cell = open.reduce((a, b) => count(left[b]) < count(left[a]) ? b : a);
    let best = [...Array(size).keys()].map((d) => [cell, left[cell] & 1 << d]).filter(([, d]) => d);
    for (const unit of units)
      for (let d = 0; d < size && best.length > 1; d++) {
        const places = unit.filter((at) => left[at] >> d & 1);
        if (places.length < best.length && !places.some((at) => single(left[at])))
          best = places.map((at) => [at, 1 << d]);
      }
    return best;
  };
  const start = new Int32Array(size * size).fill((1 << size) - 1);
  const fits = given.every((digit, cell) =>
    digit < 0 || start[cell] >> digit & 1 && place(start, cell, 1 << digit));
  const stack = fits ? [start] : [];
  while (stack.length && found.length < limit) {
    const left = stack.pop(), next = branches(left);
    if (!next) found.push([...left].map((bits) => 31 - Math.clz32(bits)));
    for (const [cell, digit] of next || []) {
      const copy = left.slice();
      if (patience-- <= 0) return null;
      if (place(copy, cell, digit)) stack.push(copy);
    }
  }
  return found;
}

/** What each cell of a draft is: a clue, committed, unsure (back to noise), unsure and wrong, or
 * committed, yet wrong (sudoku/plot.py). Wrong is what differs from the only solution; without one,
 * what breaks a rule with a cell that is known, or, of what is unsure, with any cell. */
function kinds(shape, given, draft, known, solution) {
  const lost = clashes(shape, draft, known), odd = clashes(shape, draft);
  return given.map((digit, l) => {
    if (digit >= 0) return "clue";
    const wrong = solution ? draft[l] !== solution[l] : known[l] ? lost[l] : odd[l];
    return known[l] ? (wrong ? "lost" : "committed") : wrong ? "wrong" : "unsure";
  });
}

// -------------------------------------------------------------------------------------------------
// 4. The two modes 00 and 11 (toy/exact.py)
// -------------------------------------------------------------------------------------------------

/** delta_{s,t} of the first mode for x (2, 2): both tokens have this one probability. The closed
 * form is for t = s and t = 1; at t = 1 the mode with the larger <x, y_k>, a tie being 1/2. */
function two_mode_closed_form(x, s, t) {
  const lead = x[0][0] - x[0][1] + x[1][0] - x[1][1];  // <x, y_1 - y_2>
  return (1 + (t === 1 ? Math.sign(lead) : Math.tanh(s / (1 - s) ** 2 * lead / 2))) / 2;
}

// -------------------------------------------------------------------------------------------------
// 5. The worker: answers {id, ask, ...} by messages {id, ...}
// -------------------------------------------------------------------------------------------------

function serve(scope) {
  let model, shape;
  const stopped = new Set(), say = (id, words) => scope.postMessage({id, ...words});
  const pause = () => new Promise((go) => setTimeout(go));  // lets the next message in
  const answers = {
    load(id, {config, base64}) { [shape, model] = [config.shape, load(config, base64)]; },
    solutions(id, {given}) { say(id, {found: solutions(shape, given)}); },
    async refine(id, {samplers, given, rounds, seed}) {
      let passes = samplers.map((name) => [name, SAMPLERS[name](model, given, rounds,
        normals(seed, model.L * model.vocab_size))]);  // all of them from the same noise
      while (passes.length) {
        for (const each of [...passes]) {
          const start = performance.now(), {value, done} = each[1].next();
          if (done) passes = passes.filter((other) => other !== each);
          else say(id, {sampler: each[0], pass: value, ms: performance.now() - start});
          await pause();
          if (stopped.delete(id)) return;
        }
      }
    },
  };
  scope.onmessage = async ({data}) => {
    if (data.ask === "stop") return stopped.add(data.id);
    try {
      await answers[data.ask](data.id, data);
      say(data.id, {done: true});
    } catch (error) {
      say(data.id, {error: String(error)});
    }
  };
}

if (typeof WorkerGlobalScope !== "undefined" && self instanceof WorkerGlobalScope) serve(self);
