// The API key: kept for as long as the tab is open, asked for when the server wants one.

const NAME = "api-key";
const dialog = document.getElementById("key-dialog");
const field = document.getElementById("key-value");
let asking = null;

export function key() {
  return sessionStorage.getItem(NAME) ?? "";
}

// Whether another key was given. All who ask while the dialog is open share its answer.
export function askForKey(why) {
  asking ??= new Promise((answered) => {
    document.getElementById("key-why").textContent = why;
    field.value = "";
    dialog.returnValue = "";
    dialog.addEventListener("close", () => answered(take()), { once: true });
    dialog.showModal();
    field.focus();
  }).finally(() => {
    asking = null;
  });
  return asking;
}

function take() {
  if (dialog.returnValue !== "given") return false;
  sessionStorage.setItem(NAME, field.value.trim());
  field.value = "";
  return true;
}

document.getElementById("key-cancel").addEventListener("click", () => dialog.close(""));
