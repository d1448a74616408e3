import assert from "node:assert/strict";
import { test } from "node:test";

import { ParakeetError, Stream } from "../dist/index.js";
import { Patience } from "../dist/patience.js";

/** A WebSocket whose server is the test: `script` gets every socket that is opened. */
function fakeWebSocket(script) {
  return class FakeWebSocket {
    static opened = [];
    readyState = 1;
    bufferedAmount = 0;
    sent = []; // messages, and 16-bit samples as lists
    bytes = [];

    constructor(url, protocols) {
      this.url = url;
      this.protocols = protocols;
      FakeWebSocket.opened.push(this);
      queueMicrotask(() => script(this, FakeWebSocket.opened.length));
    }

    send(data) {
      if (typeof data !== "string") this.bytes.push([...data]);
      this.sent.push(typeof data === "string" ? JSON.parse(data) : int16(data));
      this.onSent?.(this.sent.at(-1));
    }

    say(message) {
      this.onmessage({ data: JSON.stringify(message) });
    }

    drop() {
      this.readyState = 3;
      this.onclose?.();
    }

    close() {
      this.readyState = 3;
    }
  };
}

function int16(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return Array.from({ length: bytes.length >> 1 }, (_, at) => view.getInt16(2 * at, true));
}

const HELLO = { type: "hello", stream_id: 7, sample_rate: 16000, resume_token: "first", capabilities: ["finalize", "phrases"] };
const result = (seq, text, acked, rest = {}) => ({
  type: "result",
  text,
  token_ids: [],
  confidence_scores: [],
  is_final: false,
  last_state: "speech",
  turn_detection: "running",
  seq,
  audio_ack_samples: acked,
  ...rest,
});

test("a long block is cut into messages", async () => {
  const Socket = fakeWebSocket((socket) => socket.say(HELLO));
  const stream = await Stream.connect("ws://server/", { WebSocket: Socket });
  const samples = Int16Array.from({ length: 100_000 }, (_, at) => at % 30_000);
  await stream.send(samples);
  const messages = Socket.opened[0].sent.slice(1);
  assert.deepEqual(messages.map((message) => message.length), [16_384, 16_384, 16_384, 16_384, 16_384, 16_384, 1_696]);
  assert.deepEqual(messages.flat(), [...samples]);
  stream.close();
});

test("a connection that is refused is told at once, also where no close event comes", async () => {
  const Socket = fakeWebSocket((socket) => {
    socket.close = () => socket.onerror();
    socket.onerror();
  });
  await assert.rejects(Stream.connect("ws://server/", { WebSocket: Socket, timeoutMs: 100_000 }), {
    code: "connection_lost",
    mayRetry: true,
  });
});

test("config comes first, then audio, then close; results end with the final one", async () => {
  const Socket = fakeWebSocket((socket) => {
    socket.onSent = (message) => {
      if (message.type === "close") {
        socket.say(result(2, "go", 3));
        socket.say(result(3, "go on", 3, { is_final: true }));
      }
    };
    socket.say(HELLO);
  });
  const stream = await Stream.connect("ws://server/", { WebSocket: Socket, words: true, sampleRate: 8000 });
  await stream.send(Int16Array.of(1, 2, 3));
  const final = await stream.finish();
  assert.equal(final.text, "go on");
  const seen = [];
  for await (const { text } of stream) seen.push(text);
  assert.deepEqual(seen, ["go", "go on"]);
  assert.deepEqual(Socket.opened[0].sent, [
    { type: "config", words: true, sample_rate: 8000, resume: true },
    [1, 2, 3],
    { type: "close" },
  ]);
});

test("a key goes into the subprotocols and never into the address", async () => {
  const Socket = fakeWebSocket((socket) => socket.say(HELLO));
  const stream = await Stream.connect("ws://server/", { WebSocket: Socket, key: "pk_x_y" });
  assert.deepEqual(Socket.opened[0].protocols, ["parakeet.v1", "parakeet.auth.pk_x_y"]);
  assert.equal(Socket.opened[0].url, "ws://server/");
  stream.close();
});

test("a key that the handshake cannot carry is the caller's mistake, and nothing is opened for it", async () => {
  const Socket = fakeWebSocket((socket) => socket.say(HELLO));
  for (const key of ["pk_…", "pk_two words", "pk_line\n"]) {
    await assert.rejects(Stream.connect("ws://server/", { WebSocket: Socket, key }), (error) => {
      assert.ok(error instanceof TypeError);
      assert.match(error.message, /visible ASCII/);
      assert.ok(!error.message.includes(key));
      return true;
    });
  }
  assert.equal(Socket.opened.length, 0);
});

test("after a lost connection the stream goes on where the server says, and no result comes twice", async () => {
  const Socket = fakeWebSocket((socket, number) => {
    socket.onSent = (message) => {
      if (number === 1 && Array.isArray(message) && message[0] === 3) {
        socket.say(result(1, "go", 2));
        socket.drop();
      }
      if (message.type === "resume") {
        assert.deepEqual(message, {
          type: "resume",
          stream_id: 7,
          resume_token: "first",
          last_seq: 1,
          audio_ack_samples: 2,
        });
        socket.say({ type: "resumed", stream_id: 7, resume_token: "second", next_sample: 3 });
        socket.say(result(1, "go", 2));
      }
      if (message.type === "close") socket.say(result(2, "go on", 6, { is_final: true }));
    };
    socket.say({ ...HELLO, stream_id: number === 1 ? 7 : 8 });
  });
  const stream = await Stream.connect("ws://server/", { WebSocket: Socket });
  await stream.send(Int16Array.of(1, 2));
  await stream.send(Int16Array.of(3, 4));
  await stream.send(Int16Array.of(5, 6)); // while there is no connection
  const final = await stream.finish();
  assert.equal(final.text, "go on");
  assert.deepEqual(Socket.opened[1].sent.slice(1), [[4], [5, 6], { type: "close" }]);
  const seen = [];
  for await (const { seq } of stream) seen.push(seq);
  assert.deepEqual(seen, [1, 2]);
});

test("a stream that is closed while a server thinks about its resumption tells it so, and leaves no socket open", async () => {
  let asked;
  const resuming = new Promise((resolve) => (asked = resolve));
  const Socket = fakeWebSocket((socket, number) => {
    socket.onSent = (message) => {
      if (number === 1 && Array.isArray(message)) socket.drop();
      if (message.type === "resume") asked(socket);
    };
    socket.say(HELLO);
  });
  const stream = await Stream.connect("ws://server/", { WebSocket: Socket });
  await stream.send(Int16Array.of(1, 2));
  const socket = await resuming;
  stream.close();
  socket.say({ type: "resumed", stream_id: 7, resume_token: "second", next_sample: 0 });
  await new Promise(setImmediate);
  assert.equal(socket.readyState, 3);
  assert.deepEqual(socket.sent.map(({ type }) => type), ["resume", "close"]);
});

test("a server that has lost audio that it decoded ends the stream, and no promise is left alone", async () => {
  const Socket = fakeWebSocket((socket) => {
    socket.onSent = (message) => {
      if (message.type === "resume") {
        socket.say({ type: "resumed", stream_id: 7, resume_token: "second", next_sample: 1 });
      }
    };
    socket.say(HELLO);
  });
  const stream = await Stream.connect("ws://server/", { WebSocket: Socket });
  await stream.send(Int16Array.of(1, 2));
  await stream.send(Int16Array.of(3));
  Socket.opened[0].say(result(1, "go", 2));
  Socket.opened[0].drop();
  await assert.rejects(stream.finish(), { code: "stream_lost", mayRetry: false });
});

test("a key at its limit does not keep a client from the stream that it has", async () => {
  const Socket = fakeWebSocket((socket, number) => {
    socket.onSent = (message) => {
      if (message.type === "resume") {
        socket.say({ type: "resumed", stream_id: 7, resume_token: "second", next_sample: 2 });
      }
      if (message.type === "close") socket.say(result(1, "go", 2, { is_final: true }));
    };
    if (number === 1) socket.say(HELLO);
    else socket.say({ type: "error", code: "over_limit", message: "The key has as many streams as it may have." });
  });
  const stream = await Stream.connect("ws://server/?a=b", { WebSocket: Socket });
  await stream.send(Int16Array.of(1, 2));
  Socket.opened[0].drop();
  assert.equal((await stream.finish()).text, "go");
  assert.deepEqual(
    Socket.opened.map(({ url }) => url),
    ["ws://server/?a=b", "ws://server/?a=b&resume="],
  );
});

test("a client's own fault ends the stream with its code, and is not tried again", async () => {
  const Socket = fakeWebSocket((socket) => {
    socket.onSent = (message) => {
      if (message.type === "config") {
        socket.say({ type: "error", code: "bad_option", message: "No such language.", stream_id: 7 });
        socket.drop();
      }
    };
    socket.say(HELLO);
  });
  const stream = await Stream.connect("ws://server/", { WebSocket: Socket, language: "xx" });
  await assert.rejects(stream.finish(), (error) => {
    assert(error instanceof ParakeetError);
    assert.equal(error.code, "bad_option");
    assert.equal(error.mayRetry, false);
    return true;
  });
  assert.equal(Socket.opened.length, 1);
});

test("a stream that is closed tells its server, which would else wait for its client", async () => {
  const Socket = fakeWebSocket((socket) => socket.say(HELLO));
  const stream = await Stream.connect("ws://server/", { WebSocket: Socket });
  await stream.send(Int16Array.of(1));
  stream.close();
  stream.close();
  assert.deepEqual(Socket.opened[0].sent.slice(1), [[1], { type: "close" }]);
  await assert.rejects(stream.finish(), { code: "closed", mayRetry: false });
});

test("a full server's answer is told, and may be tried again", async () => {
  const Socket = fakeWebSocket((socket) =>
    socket.say({ type: "error", code: "no_free_stream", message: "No free streaming state available." }),
  );
  await assert.rejects(Stream.connect("ws://server/", { WebSocket: Socket }), {
    code: "no_free_stream",
    mayRetry: true,
  });
});

test("send waits while too much is ahead of what is decoded", async () => {
  let server;
  const Socket = fakeWebSocket((socket) => {
    server = socket;
    socket.say(HELLO);
  });
  const stream = await Stream.connect("ws://server/", { WebSocket: Socket, maxAheadS: 0.001, sampleRate: 8000 });
  await stream.send(new Int16Array(8));
  let went = false;
  const waiting = stream.send(new Int16Array(8)).then(() => (went = true));
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(went, false);
  server.say({ type: "ack", audio_ack_samples: 8 });
  await waiting;
  stream.close();
});

test("what nobody waits for goes out in the order of the calls", async () => {
  let server;
  const Socket = fakeWebSocket((socket) => {
    server = socket;
    socket.say(HELLO);
  });
  const stream = await Stream.connect("ws://server/", { WebSocket: Socket, maxAheadS: 1 });
  const twoMessages = (value) => new Int16Array(32_768).fill(value);
  const sends = [stream.send(twoMessages(1)), stream.send(twoMessages(2))];
  stream.finalize();
  sends.push(stream.send(twoMessages(3)));
  const finish = stream.finish();
  const brief = () => server.sent.slice(1).map((message) => message.type ?? [message[0], message.length]);
  const [one, two, three] = [1, 2, 3].map((value) => [value, 16_384]);
  assert.deepEqual(brief(), [one], "a second of audio may be on its way");
  for (const [acked, sent] of [
    [16_384, [one, one]],
    [3 * 16_384, [one, one, two, two, "finalize"]],
    [6 * 16_384, [one, one, two, two, "finalize", three, three, "close"]],
  ]) {
    for (let more = true; more; ) {
      const before = server.sent.length;
      const done = server.sent.filter(Array.isArray).length * 16_384;
      server.say({ type: "ack", audio_ack_samples: Math.min(acked, done) });
      more = server.sent.length > before;
    }
    assert.deepEqual(brief(), sent);
  }
  server.say(result(1, "go", 6 * 16_384, { is_final: true }));
  await Promise.all(sends);
  assert.equal((await finish).text, "go");
});

test("a server that falls silent counts as lost, and the stream goes on at another", async () => {
  const Socket = fakeWebSocket((socket, number) => {
    socket.onSent = (message) => {
      if (message.type === "resume") {
        socket.say({ type: "resumed", stream_id: 7, resume_token: "second", next_sample: 0 });
      }
      if (Array.isArray(message) && number === 2) socket.say({ type: "ack", audio_ack_samples: 8 });
      if (message.type === "ping" && number === 2) socket.say({ type: "pong" });
    };
    socket.say(HELLO);
  });
  const options = { WebSocket: Socket, maxAheadS: 0.0001, sampleRate: 8000, silenceMs: 100 };
  const awake = setInterval(() => {}, 1000); // as a real socket keeps Node
  const stream = await Stream.connect("ws://server/", options);
  await stream.send(new Int16Array(8)); // waits for the first server, which says nothing more
  const pings = (number) => Socket.opened[number].sent.filter(({ type }) => type === "ping").length;
  assert.equal(pings(0), 1);
  while (pings(1) < 2) await new Promise((resolve) => setTimeout(resolve, 10));
  assert.equal(Socket.opened.length, 2, "the second server answers pings");
  stream.close();
  clearInterval(awake);
});

test("a stream that its server never knew begins anew, with all of its audio", async () => {
  const Socket = fakeWebSocket((socket, number) => {
    socket.onSent = (message) => {
      if (message.type === "resume") {
        socket.say({ type: "error", code: "resume_refused", message: "There is no stream 7." });
      }
      if (message.type === "close" && number === 3) socket.say(result(1, "go", 2, { is_final: true }));
    };
    socket.say({ ...HELLO, stream_id: 6 + number });
  });
  const stream = await Stream.connect("ws://server/", { WebSocket: Socket, words: true });
  await stream.send(Int16Array.of(1, 2));
  Socket.opened[0].drop();
  assert.equal((await stream.finish()).text, "go");
  assert.equal(stream.streamId, 9);
  const config = { type: "config", words: true, sample_rate: 16000, resume: true };
  assert.deepEqual(Socket.opened[2].sent, [config, [1, 2], { type: "close" }]);
});

test("a server that fails the stream again and again is left in the end", async () => {
  const Socket = fakeWebSocket((socket) => {
    socket.onSent = (message) => {
      if (message.type !== "resume") return;
      socket.say({ type: "resumed", stream_id: 7, resume_token: "next", next_sample: 0 });
      setImmediate(() => socket.say({ type: "error", code: "internal", message: "A defect." }));
    };
    socket.say(HELLO);
  });
  const stream = await Stream.connect("ws://server/", { WebSocket: Socket, resumeMs: 500 });
  await stream.send(Int16Array.of(1));
  Socket.opened[0].drop();
  await assert.rejects(stream.finish(), { code: "internal", mayRetry: true });
  const opened = Socket.opened.length;
  assert.ok(opened >= 2 && opened <= 7, `pauses of 100, 200, 400 ms, give or take a half: ${opened}`);
});

/** A server that ends a stream's first connection with this error, and answers attempts to resume with others first. */
function ailing(code, answers = []) {
  return fakeWebSocket((socket, number) => {
    socket.onSent = (message) => {
      if (number === 1 && Array.isArray(message)) {
        socket.say(result(1, "go", 2));
        socket.say({ type: "error", code, message: "A pause.", stream_id: 7 });
        socket.drop();
      }
      if (message.type === "resume") {
        const refusal = answers.shift();
        if (refusal !== undefined) socket.say({ type: "error", code: refusal, message: "Not now." });
        else socket.say({ type: "resumed", stream_id: 7, resume_token: "next", next_sample: 2 });
      }
      if (message.type === "close") socket.say(result(2, "go on", 2, { is_final: true }));
    };
    socket.say(HELLO);
  });
}

for (const code of ["slow_reader", "no_worker", "redis_unavailable", "draining", "internal"]) {
  test(`a stream goes on after ${code}, behind which it waits`, async () => {
    const told = [];
    const Socket = ailing(code);
    const onConnection = (lost) => told.push(lost?.code);
    const stream = await Stream.connect("ws://server/", { WebSocket: Socket, onConnection });
    await stream.send(Int16Array.of(1, 2));
    assert.equal((await stream.finish()).text, "go on");
    assert.equal(Socket.opened.length, 2);
    assert.deepEqual(told, [code, undefined]);
  });
}

test("a fault of the caller's `onConnection` ends the stream, and nobody waits for it", async () => {
  const Socket = ailing("draining");
  const onConnection = () => {
    throw new TypeError("a fault of the caller");
  };
  const stream = await Stream.connect("ws://server/", { WebSocket: Socket, onConnection });
  await assert.rejects(stream.send(Int16Array.of(1, 2)), { code: "stream_lost", message: /a fault of the caller/ });
  assert.equal(Socket.opened.length, 1);
});

test("time on a connection that had nothing to bring is no part of an outage", async ({ mock }) => {
  let now = 0;
  mock.method(performance, "now", () => now);
  const patience = new Patience(1000);
  patience.lost();
  now = 300;
  patience.resumed();
  now = 1200; // 900 ms later, without a word
  patience.lost();
  assert.ok(await patience.pause());
  now = 1800;
  patience.resumed();
  patience.lost();
  now = 2000;
  assert.equal(await patience.pause(), false, "300, 600 and 200 ms without a connection");
});

test("an attempt that fails is no end of the stream", async () => {
  const Socket = ailing("draining", ["redis_unavailable", "too_many_connections", "no_worker"]);
  const stream = await Stream.connect("ws://server/", { WebSocket: Socket });
  await stream.send(Int16Array.of(1, 2));
  assert.equal((await stream.finish()).text, "go on");
  assert.equal(Socket.opened.length, 5);
});

test("an attempt that cannot succeed is the last", async () => {
  for (const code of ["unauthorized", "stream_lost", "of_a_newer_server", "toString"]) {
    const Socket = ailing("draining", [code]);
    const stream = await Stream.connect("ws://server/", { WebSocket: Socket });
    await stream.send(Int16Array.of(1, 2));
    await assert.rejects(stream.finish(), { code, mayRetry: code === "stream_lost" });
    assert.equal(Socket.opened.length, 2);
  }
});

test("a key at its limit may try again, and its stream is not resumed again and again", async () => {
  let server;
  const Socket = fakeWebSocket((socket) => {
    server = socket;
    socket.say(HELLO);
  });
  const stream = await Stream.connect("ws://server/", { WebSocket: Socket });
  server.say({ type: "error", code: "over_limit", message: "The key has had its audio of today." });
  await assert.rejects(stream.finish(), { code: "over_limit", mayRetry: true });
  assert.equal(Socket.opened.length, 1);
});

test("a stream that loses its connection for good fails and leaves nobody waiting", async () => {
  const Socket = fakeWebSocket((socket, number) => {
    if (number > 1) socket.drop();
    else {
      socket.say(HELLO);
      setImmediate(() => socket.drop());
    }
  });
  const stream = await Stream.connect("ws://server/", { WebSocket: Socket, resumeMs: 300 });
  await assert.rejects(stream.finish(), { code: "connection_lost" });
  await assert.rejects(async () => {
    for await (const _ of stream);
  }, { code: "connection_lost" });
});

test("samples travel in the encoding that was asked for", async () => {
  const Socket = fakeWebSocket((socket) => socket.say(HELLO));
  const sentIn = async (encoding, samples) => {
    const stream = await Stream.connect("ws://server/", { WebSocket: Socket, encoding, sampleRate: 8000 });
    await stream.send(samples);
    stream.close();
    const [config] = Socket.opened.at(-1).sent;
    assert.deepEqual([config.encoding, config.sample_rate], [encoding, 8000]);
    return Socket.opened.at(-1).bytes;
  };
  assert.deepEqual(await sentIn("f32", Float32Array.of(0.5)), [[0, 0, 0, 0x3f]]);
  assert.deepEqual(await sentIn("f32", Int16Array.of(-0x4000)), [[0, 0, 0, 0xbf]]);
  assert.deepEqual(await sentIn("mulaw", Uint8Array.of(255, 0)), [[255, 0]]);
  assert.deepEqual(await sentIn("pcm16", Float32Array.of(1)), [[0xff, 0x7f]]);
  await assert.rejects(sentIn("alaw", Int16Array.of(1)), TypeError);
});

test("finalize and phrases go behind the audio before them, and a server without them is not asked", async () => {
  const Socket = fakeWebSocket((socket) => socket.say(HELLO));
  const stream = await Stream.connect("ws://server/", { WebSocket: Socket, phrases: ["Parakeet"] });
  await stream.send(Int16Array.of(1));
  stream.finalize();
  stream.setPhrases([{ text: "go on", boost: 2 }]);
  await stream.send(Int16Array.of(2));
  const [config, ...sent] = Socket.opened[0].sent;
  assert.deepEqual(config.phrases, ["Parakeet"]);
  const phrases = { type: "phrases", phrases: [{ text: "go on", boost: 2 }] };
  assert.deepEqual(sent, [[1], { type: "finalize" }, phrases, [2]]);
  stream.close();

  const Bare = fakeWebSocket((socket) => socket.say({ ...HELLO, capabilities: [] }));
  const other = await Stream.connect("ws://server/", { WebSocket: Bare });
  assert.throws(() => other.finalize(), { code: "unknown_type" });
  other.close();
});

test("a finalize without an answer is asked again at its place, with the newest token", async () => {
  const Socket = fakeWebSocket((socket, number) => {
    socket.onSent = (message) => {
      if (message.type === "finalize" && number === 1) {
        if (socket.sent.filter(({ type }) => type === "finalize").length === 1) {
          socket.say(result(1, "go", 1, { from_finalize: true }));
        } else {
          socket.drop();
        }
      }
      if (message.type === "resume") {
        assert.equal(message.resume_token, number === 2 ? "first" : "second");
        socket.say({ type: "resumed", stream_id: 7, resume_token: "second", next_sample: number - 1 });
        if (number === 2) setImmediate(() => socket.drop());
      }
      if (message.type === "close") socket.say(result(2, "go on", 3, { is_final: true }));
    };
    socket.say(HELLO);
  });
  const stream = await Stream.connect("ws://server/", { WebSocket: Socket });
  await stream.send(Int16Array.of(1));
  stream.finalize();
  await stream.send(Int16Array.of(2));
  stream.finalize();
  await stream.send(Int16Array.of(3));
  while (Socket.opened.length < 3) await new Promise((resolve) => setTimeout(resolve, 10));
  assert.equal((await stream.finish()).text, "go on");
  assert.deepEqual(Socket.opened[1].sent.slice(1), [[2], { type: "finalize" }, [3]]);
  assert.deepEqual(Socket.opened[2].sent.slice(1), [{ type: "finalize" }, [3], { type: "close" }]);
});

test("where the newest token is refused, the one before is tried", async () => {
  const shown = [];
  const Socket = fakeWebSocket((socket, number) => {
    socket.onSent = (message) => {
      if (message.type === "resume") {
        shown.push(message.resume_token);
        if (number === 2) {
          socket.say({ type: "resumed", stream_id: 7, resume_token: "forgotten", next_sample: 1 });
          setImmediate(() => socket.drop());
        } else if (number === 3) {
          socket.say({ type: "error", code: "resume_refused", message: "Its secret differs." });
        } else {
          socket.say({ type: "resumed", stream_id: 7, resume_token: "third", next_sample: 1 });
        }
      }
      if (message.type === "close" && number === 4) socket.say(result(1, "go", 1, { is_final: true }));
    };
    socket.say(HELLO);
  });
  const stream = await Stream.connect("ws://server/", { WebSocket: Socket });
  await stream.send(Int16Array.of(1));
  Socket.opened[0].drop();
  while (Socket.opened.length < 4) await new Promise((resolve) => setTimeout(resolve, 10));
  assert.equal((await stream.finish()).text, "go");
  assert.deepEqual(shown, ["first", "forgotten", "first"]);
});

test("warnings of the server are told", async () => {
  const warnings = [];
  const Socket = fakeWebSocket((socket) => {
    socket.say(HELLO);
    setImmediate(() => socket.say({ type: "warning", code: "integer_scale", message: "Too loud." }));
  });
  const onWarning = (warning) => warnings.push(warning.code);
  const stream = await Stream.connect("ws://server/", { WebSocket: Socket, onWarning });
  await new Promise((resolve) => setTimeout(resolve, 5));
  assert.deepEqual(warnings, ["integer_scale"]);
  stream.close();
});

test("a final result of a part of the audio is no end in good order", async () => {
  const ends = {
    too_much_audio: (socket) => socket.say({ type: "error", code: "too_much_audio", message: "Too much." }),
    connection_lost: (socket) => socket.drop(),
  };
  for (const [code, end] of Object.entries(ends)) {
    const Socket = fakeWebSocket((socket) => {
      socket.onSent = (message) => {
        if (message.type !== "close") return;
        socket.say(result(1, "go", 2, { is_final: true }));
        end(socket);
      };
      socket.say(HELLO);
    });
    const stream = await Stream.connect("ws://server/", { WebSocket: Socket });
    await stream.send(Int16Array.of(1, 2, 3));
    await assert.rejects(stream.finish(), { name: "ParakeetError", code });
    const seen = [];
    await assert.rejects(async () => {
      for await (const { text, is_final } of stream) seen.push([text, is_final]);
    }, { code });
    assert.deepEqual(seen, [["go", false]]);
  }
});
