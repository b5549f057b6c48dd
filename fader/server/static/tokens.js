// The text of an answer cut into its tokens, and two texts compared word by word.

// Half a character has no text of its own: such tokens are shown together, as one piece.
const HALF = "\ufffd";

// Takes the frames of a stream and gives pieces {text, tokens} whose texts in order are the answer.
// A piece has more than one token where they cannot be told apart in the text.
export class Pieces {
  constructor(pieces = []) {
    this.pieces = [...pieces];
    this.text = "";
    this.waiting = [];
  }

  add(text, tokens) {
    this.text += text;
    this.waiting.push(...tokens);
    while (this.waiting.length) {
      const whole = this.waiting.findIndex(({ token }) => !token.includes(HALF));
      if (whole < 0) break; // more of the character is to come
      const at = this.text.indexOf(this.waiting[whole].token);
      if (at < 0 || (whole === 0 && at > 0)) break; // its text is still held back
      if (whole > 0) this.#take(at, whole); // what stands before it is spelled by the halves
      this.#take(this.waiting[0].token.length, 1);
    }
  }

  // The answer has ended: its last token may be one that is not in the text.
  end() {
    if (this.text) this.#take(this.text.length, this.waiting.length);
    if (this.waiting.length) {
      this.pieces.push({ text: "", tokens: this.waiting });
      this.waiting = [];
    }
  }

  #take(length, count) {
    this.pieces.push({ text: this.text.slice(0, length), tokens: this.waiting.slice(0, count) });
    this.text = this.text.slice(length);
    this.waiting = this.waiting.slice(count);
  }

  get shown() {
    return this.text ? [...this.pieces, { text: this.text, tokens: [] }] : [...this.pieces];
  }
}

export const textOf = (pieces) => pieces.map((piece) => piece.text).join("");
export const idsOf = (pieces) => pieces.flatMap((piece) => piece.tokens.map((token) => token.id));

// What all guides together added to a piece's scores, in nats.
export const addedTo = (piece) =>
  piece.tokens.reduce(
    (sum, token) => sum + Object.values(token.fader?.guides ?? {}).reduce((a, b) => a + b, 0),
    0,
  );

const words = (text) => text.match(/\s*(?:[\p{L}\p{N}'’]+|[^\s\p{L}\p{N}])|\s+/gu) ?? [];

// How `after` differs from `before`: parts {text, kind}, kind being "same", "new" or "gone". By the
// longest common subsequence of words; between two words that stay, what is gone stands first.
export function differences(before, after) {
  const [a, b] = [words(before), words(after)];
  const same = (i, j) => a[i].trim() === b[j].trim();
  const length = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      length[i][j] = same(i, j)
        ? length[i + 1][j + 1] + 1
        : Math.max(length[i + 1][j], length[i][j + 1]);
    }
  }
  const parts = [];
  let [gone, fresh] = ["", ""];
  const put = (text, kind) => text && parts.push({ text, kind });
  const change = () => {
    put(gone, "gone");
    put(fresh, "new");
    [gone, fresh] = ["", ""];
  };
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && same(i, j)) {
      change();
      if (parts.at(-1)?.kind === "same") parts.at(-1).text += b[j];
      else put(b[j], "same");
      [i, j] = [i + 1, j + 1];
    } else if (j >= b.length || (i < a.length && length[i + 1][j] >= length[i][j + 1])) {
      gone += a[i++];
    } else {
      fresh += b[j++];
    }
  }
  change();
  return parts;
}
