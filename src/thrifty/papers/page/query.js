"use strict";
// The query language of the library, as `query.py` reads it; both are tested on the same cases (tests/papers/query_cases.py).
const Query = (() => {
  // What Python calls a space, besides the plain one; JavaScript's \s lacks some of these and has U+FEFF.
  const ODD = "\\t-\\r\\x1c-\\x1f\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
  const SPACES = new RegExp(`[ ${ODD}]+`, "g");
  const UNTIDY = new RegExp(`^ | $|  |[${ODD}]`);
  const LEADING = new RegExp(`^[ ${ODD}]*`);
  const TOKEN = new RegExp(`[ ${ODD}]*(?:"([^"]*)("?)|(-)(?=[^ ${ODD}()])|([()])|([^ ${ODD}()"]+))`, "uy");
  const PLAIN = /^[\0-\x7f]*$/;
  const DEEPEST = 100;

  class Fault extends Error {}

  // A mark combines where a mark of the highest class (U+0345) moves behind it.
  const combines = (mark) => mark === "\u0345" || ("\u0345" + mark).normalize("NFD") !== "\u0345" + mark;
  const bare = (text) => text.normalize("NFKD").replace(/\p{M}/gu, (mark) => (combines(mark) ? "" : mark));

  // Lower case, without accents, words one space apart.
  function folded(text) {
    const plain = (PLAIN.test(text) ? text : bare(text)).toLowerCase();
    return UNTIDY.test(plain) ? plain.replace(SPACES, " ").replace(/^ | $/g, "") : plain;
  }

  // Everything that a search looks at, one field a line.
  function searchable(paper) {
    const list = (name, between) => (paper[name] ?? []).join(between);
    return [
      paper.id, paper.name, paper.title, list("authors", ", "), paper.abstract, paper.kind, paper.domain, paper.module,
      list("also", " "), paper.core, paper.headline, paper.reason, list("builds_on", ", "), list("categories", " "), list("code", " "),
    ].filter(Boolean).map(folded).join("\n");
  }

  // The pieces of a query: kind `word`, `phrase`, `and`, `or`, `not`, `(` or `)`; text; at, its place in letters, counted from 1.
  function tokens(query) {
    const found = [];
    TOKEN.lastIndex = 0;
    for (let piece = TOKEN.exec(query); piece; piece = TOKEN.exec(query)) {
      const [whole, phrase, closed, minus, paren, word] = piece;
      const at = [...query.slice(0, piece.index + LEADING.exec(whole)[0].length)].length + 1;
      const add = (kind, text) => found.push({ kind, text, at });
      if (phrase !== undefined) {
        if (!closed) throw new Fault(`query, place ${at}: the quotation mark is not closed; write "words together"`);
        if (!folded(phrase)) throw new Fault(`query, place ${at}: the phrase is empty; put words between the quotation marks`);
        add("phrase", folded(phrase));
      } else if (minus) add("not", "-");
      else if (paren) add(paren, paren);
      else if (["AND", "OR", "NOT"].includes(word)) add(word.toLowerCase(), word);
      else if (folded(word)) add("word", folded(word));
    }
    return found;
  }

  function fail(token, what) {
    const known = 'words, "phrases", AND, OR, NOT, a leading minus and parentheses are understood';
    throw new Fault(`query, place ${token.at} ('${token.text}'): ${what}; ${known}`);
  }

  // What a query asks for, as {kind: `words`, text, whole}, {kind: `not`, part} or {kind: `all` or `any`, parts}. Throws a Fault.
  function parse(query) {
    const left = tokens(query);
    let depth = 0;
    const next = () => left[0]?.kind;
    const joined = (kind, parts) => (parts.length === 1 ? parts[0] : { kind, parts });

    function either() {
      const parts = [all()];
      while (next() === "or") parts.push(all(left.shift()));
      return joined("any", parts);
    }
    function all(after) {
      const parts = [one(after)];
      while (left.length && next() !== "or" && next() !== ")") parts.push(one(next() === "and" ? left.shift() : undefined));
      return joined("all", parts);
    }
    function one(after) {
      if (!left.length || ["and", "or", ")"].includes(next())) fail(left[0] ?? after, "a word is missing");
      const token = left.shift();
      if (token.kind === "word" || token.kind === "phrase") return { kind: "words", text: token.text, whole: token.kind === "phrase" };
      if (++depth > DEEPEST) fail(token, `this is nested more than ${DEEPEST} deep`);
      const found = token.kind === "not" ? { kind: "not", part: one(token) } : inside(token);
      depth -= 1;
      return found;
    }
    function inside(token) {
      const found = left.length && either();
      if (!left.length) fail(token, "this parenthesis is not closed");
      left.shift();
      return found;
    }

    if (!left.length) return { kind: "all", parts: [] };
    const found = either();
    if (left.length) fail(left[0], "this parenthesis was never opened");
    return found;
  }

  const LETTER = /[\p{L}\p{N}]/u;
  const ASCII = Uint8Array.from({ length: 128 }, (_, code) => LETTER.test(String.fromCharCode(code)));
  const isLetter = (code) => (code < 128 ? ASCII[code] === 1 : LETTER.test(String.fromCodePoint(code)));

  function letterBefore(text, at) {
    if (at === 0) return false;
    const code = text.charCodeAt(at - 1);
    return isLetter(code >= 0xdc00 && code < 0xe000 && at > 1 ? text.codePointAt(at - 2) : code);
  }
  const letterAt = (text, at) => at < text.length && isLetter(text.codePointAt(at));

  // A folded text with an upper-case letter where a word starts: whoever looks for a word there meets no place within another.
  function titled(text) {
    if (!PLAIN.test(text)) return text.replace(/(?<![\p{L}\p{N}])[a-z]/gu, (letter) => letter.toUpperCase());
    const bytes = encoder.encode(text);
    for (let at = 0, inside = 0; at < bytes.length; at++) {
      const byte = bytes[at];
      if (!inside && byte >= 0x61 && byte <= 0x7a) bytes[at] = byte - 0x20;
      inside = ASCII[byte];
    }
    return decoder.decode(bytes);
  }
  const encoder = new TextEncoder(), decoder = new TextDecoder();

  // Where these words stand next, from the start of one on; whole: and up to the end of one. -1 where they do not. Both are titled.
  function place(text, words, whole, from = 0) {
    const first = letterAt(words, 0) && !/^[A-Z]/.test(words), last = whole && letterBefore(words, words.length);
    for (let at = text.indexOf(words, from); at >= 0; at = text.indexOf(words, at + 1)) {
      if (!(first && letterBefore(text, at)) && !(last && letterAt(text, at + words.length))) return at;
    }
    return -1;
  }

  // Many texts made by `searchable`. What was found is kept: the next letter of a word looks only where the word was found before it.
  class Texts {
    constructor(texts) {
      this.texts = texts.map(titled);
      this.known = new Map();
    }

    // Which texts hold what a query asks for: one byte each.
    among(wanted) {
      if (wanted.kind === "words") return this.having(wanted.text, wanted.whole);
      if (wanted.kind === "not") return this.among(wanted.part).map((held) => 1 - held);
      const every = wanted.kind === "all";
      const found = new Uint8Array(this.texts.length).fill(every ? 1 : 0);
      for (const part of wanted.parts) {
        const held = this.among(part);
        for (let i = 0; i < found.length; i++) found[i] = every ? found[i] & held[i] : found[i] | held[i];
      }
      return found;
    }

    having(words, whole) {
      const key = (whole ? '"' : "") + words;
      if (this.known.has(key)) return this.known.get(key);
      const before = this.shorter(words), wanted = titled(words), found = new Uint8Array(this.texts.length);
      for (let i = 0; i < found.length; i++) {
        if (!before || before[i]) found[i] = place(this.texts[i], wanted, whole) >= 0 ? 1 : 0;
      }
      if (this.known.size >= 256) this.known.delete(this.known.keys().next().value);
      this.known.set(key, found);
      return found;
    }

    // What was found for the longest beginning of these words.
    shorter(words) {
      for (let length = words.length; length > 0; length--) {
        const found = this.known.get(words.slice(0, length));
        if (found) return found;
      }
      return null;
    }
  }

  // The words and phrases that a query wants to be there.
  function wantedWords(wanted, there = true) {
    if (wanted.kind === "words") return there ? [wanted] : [];
    if (wanted.kind === "not") return wantedWords(wanted.part, !there);
    return wanted.parts.flatMap((part) => wantedWords(part, there));
  }

  // Where the words stand in a text as it is written: [start, end) pairs in their order, none within another.
  function places(text, words) {
    if (!words.length) return [];
    const [folds, starts, ends] = withPlaces(text);
    const plain = titled(folds), found = [];
    for (const { text, whole } of words) {
      const word = titled(text);
      for (let at = place(plain, word, whole); at >= 0; at = place(plain, word, whole, at + word.length)) {
        const end = at + word.length;
        found.push(starts ? [starts[at], ends[end - 1]] : [at, end]);
      }
    }
    found.sort((a, b) => a[0] - b[0] || b[1] - a[1]);
    return found.reduce((kept, pair) => {
      const last = kept.at(-1);
      if (last && pair[0] < last[1]) last[1] = Math.max(last[1], pair[1]);
      else kept.push(pair);
      return kept;
    }, []);
  }

  // A text folded letter by letter, and where each folded letter starts and ends in it; an accent belongs to the letter before.
  function withPlaces(text) {
    if (PLAIN.test(text) && !UNTIDY.test(text)) return [text.toLowerCase(), null, null]; // Each where it stands.
    let plain = "", at = 0;
    const starts = [], ends = [];
    for (const letter of text) {
      const space = UNTIDY.test(letter);
      const piece = space ? (plain && !plain.endsWith(" ") ? " " : "") : folded(letter);
      plain += piece;
      for (let i = 0; i < piece.length; i++) {
        starts.push(at);
        ends.push(at + letter.length);
      }
      at += letter.length;
      if (!piece && !space && ends.length) ends[ends.length - 1] = at;
    }
    return [plain, starts, ends];
  }

  return { Fault, Texts, folded, parse, places, searchable, tokens, wantedWords };
})();
