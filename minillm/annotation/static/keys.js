// Keys do what the button or link that names them does. One choice is sent per page: what is typed or clicked before the
// next pair is there must not judge it.
let sent = false;
addEventListener("pageshow", () => { sent = false; });
addEventListener("submit", (event) => {
  if (sent) event.preventDefault();
  sent = true;
});
addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || event.target.matches("input")) return;
  // by place, so that digits need no Shift where the keyboard has them above others
  const key = event.code.replace(/^(Digit|Numpad)/, "");
  document.querySelector(`[data-key="${CSS.escape(key)}"]`)?.click();
});
