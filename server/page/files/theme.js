// The theme, set before anything is painted: auto (as the system says), light or dark.

const THEMES = ["auto", "light", "dark"];

function chosenTheme() {
  const kept = localStorage.getItem("theme");
  return THEMES.includes(kept) ? kept : "auto";
}

function applyTheme(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("theme", theme);
}

applyTheme(chosenTheme());

addEventListener("DOMContentLoaded", () => {
  const button = document.getElementById("theme");
  const show = () => {
    button.textContent = `Theme: ${chosenTheme()}`;
  };
  button.addEventListener("click", () => {
    applyTheme(THEMES[(THEMES.indexOf(chosenTheme()) + 1) % THEMES.length]);
    show();
  });
  show();
});
