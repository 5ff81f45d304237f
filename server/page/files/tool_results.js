// A form for what the called tools gave: this page runs none of them.

import { element } from "./element.js";

// `given` takes the messages that tell the model.
export function makeResults(calls, given) {
  const fields = calls.map(({ id, name }) => ({
    call: id,
    name,
    field: element("textarea", { rows: 2, id: `result-${id}` }),
  }));
  const form = element(
    "form",
    { class: "results", onsubmit: submit },
    ...fields.map(({ name, field }) =>
      element("div", { class: "field" }, element("label", { for: field.id }, `What ${name} gave`), field),
    ),
    element("div", { class: "actions" }, element("button", { type: "submit" }, "Tell the model")),
  );

  function submit(event) {
    event.preventDefault();
    form.querySelector("button").disabled = true;
    given(fields.map(({ call, field }) => ({ role: "tool", tool_call_id: call, content: field.value })));
  }
  return form;
}
