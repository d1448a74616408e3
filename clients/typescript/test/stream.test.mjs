import assert from "node:assert/strict";
import { test } from "node:test";

import { ParakeetError, Stream } from "../dist/index.js";

/** A WebSocket whose server is the test: `script` gets every socket that is opened. */
function fakeWebSocket(script) {
  return class FakeWebSocket {
    static opened = [];
    readyState = 1;
    bufferedAmount = 0;
    sent = [];

    constructor(url, protocols) {
      this.url = url;
      this.protocols = protocols;
      FakeWebSocket.opened.push(this);
      queueMicrotask(() => script(this, FakeWebSocket.opened.length));
    }

    send(data) {
      this.sent.push(typeof data === "string" ? JSON.parse(data) : [...data]);
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

const HELLO = { type: "hello", stream_id: 7, sample_rate: 16000, resume_token: "first", capabilities: [] };
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

test("a stream that loses its connection for good fails and leaves nobody waiting", async () => {
  const Socket = fakeWebSocket((socket, number) => {
    if (number > 1) socket.drop();
    else {
      socket.say(HELLO);
      setImmediate(() => socket.drop());
    }
  });
  const stream = await Stream.connect("ws://server/", { WebSocket: Socket, maxReconnects: 1 });
  await assert.rejects(stream.finish(), { code: "connection_lost" });
  await assert.rejects(async () => {
    for await (const _ of stream);
  }, { code: "connection_lost" });
});
