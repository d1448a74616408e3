// The transcript on the page: finished words tinted by confidence, what may still change greyed.

export class Transcript {
  #box;
  #open; // the paragraph of the utterance under way
  #tail;
  #told = 0; // characters of the text that stand in words
  utterances = []; // lists of words { word, start_s, end_s, confidence }

  constructor(box) {
    this.#box = box;
    this.clear();
  }

  get words() {
    return this.utterances.reduce((sum, words) => sum + words.length, 0);
  }

  clear() {
    this.utterances = [];
    this.#told = 0;
    this.#open = undefined;
    const empty = document.createElement("p");
    empty.className = "empty";
    empty.textContent = "What is said appears here.";
    this.#box.replaceChildren(empty);
  }

  // A new stream: its text begins anew, and so does a paragraph.
  begin() {
    this.#told = 0;
    this.#close();
  }

  // result: a message of the server.
  show(result) {
    const down = this.#box.scrollHeight - this.#box.scrollTop - this.#box.clientHeight < 40;
    for (const word of result.words ?? []) this.#add(word);
    this.#told = endOfWords(result.text, this.#told, result.words ?? []);
    const rest = result.is_final ? "" : result.text.slice(this.#told).trim();
    if (rest || this.#open) {
      this.#paragraph();
      this.#tail.textContent = rest;
    }
    if (result.turn_detection === "end_of_utterance" || result.is_final) this.#close();
    if (down) this.#box.scrollTop = this.#box.scrollHeight;
  }

  #add(word) {
    const paragraph = this.#paragraph();
    const words = this.utterances.at(-1);
    if (words.length === 0) {
      const time = document.createElement("time");
      time.textContent = clock(word.start_s);
      paragraph.prepend(time);
    }
    words.push(word);
    const span = document.createElement("span");
    span.className = "word";
    span.style.setProperty("--sure", String(Math.max(0, Math.min(1, (word.confidence - 0.3) / 0.6))));
    span.title = `${Math.round(word.confidence * 100)} % sure, ${word.start_s.toFixed(2)} to ${word.end_s.toFixed(2)} s`;
    span.textContent = `${word.word} `;
    this.#tail.before(span);
  }

  #paragraph() {
    if (this.#open) return this.#open;
    this.#box.querySelector(".empty")?.remove();
    this.#open = document.createElement("p");
    this.#tail = document.createElement("span");
    this.#tail.className = "partial";
    this.#tail.ariaHidden = "true"; // a screen reader would read each change of it; its words come soon
    this.#open.append(this.#tail);
    this.#box.append(this.#open);
    this.utterances.push([]);
    return this.#open;
  }

  #close() {
    if (!this.#open) return;
    this.#tail.textContent = "";
    if (this.utterances.at(-1).length === 0) {
      this.utterances.pop();
      this.#open.remove();
    }
    this.#open = undefined;
  }
}

// Where the text of these words, which follow `from`, ends in the text.
function endOfWords(text, from, words) {
  let at = from;
  for (const { word } of words) {
    const found = text.indexOf(word, at);
    if (found < 0) break;
    at = found + word.length;
  }
  return at;
}

export function clock(seconds) {
  const whole = Math.floor(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}
