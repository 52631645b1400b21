// The port of a live widget: the kernel has pictures and truth, and writes answers to disk.

function livePort(model) {
  const open = new Map(), view = Math.random().toString(36).slice(2); // replies go to every view of a widget
  let last = 0;
  const hear = (message) => {
    const waiting = open.get(message.id);
    if (!waiting) return;
    open.delete(message.id);
    if (message.error) waiting.fail(new Error(message.error)); else waiting.done(message.value);
  };
  // without a limit in time: a kernel that is busy with other cells answers when it is done with them
  const ask = (content) => new Promise((done, fail) => {
    const id = `${view}-${++last}`;
    open.set(id, { done, fail });
    model.send({ ...content, id });
  });
  model.on("msg:custom", hear);
  return {
    asks: model.get("asks"),
    open: (rater) => ask({ what: "open", rater }),
    pictures: (trial) => ask({ what: "pictures", trial }),
    answer: (trial, given) => ask({ what: "answer", trial, ...given }),
    finish: () => ask({ what: "finish" }),
    close: () => model.off("msg:custom", hear),
  };
}

export default {
  render({ model, el }) {
    const host = document.createElement("div"), port = livePort(model);
    el.appendChild(host);
    judge(host, model.get("session"), port);
    return port.close;
  },
};
