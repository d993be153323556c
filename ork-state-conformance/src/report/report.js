"use strict";
// Folds the cases of a rule, or of all rules. Without script all are shown.
const fold = (button, open) => {
  button.setAttribute("aria-expanded", open);
  for (const row of button.closest("tbody").querySelectorAll("tr.case")) row.hidden = !open;
};
const rules = document.querySelectorAll("tr.rule button");
for (const button of rules) {
  button.addEventListener("click", () => fold(button, button.getAttribute("aria-expanded") !== "true"));
}
const all = document.getElementById("fold");
all.addEventListener("click", () => {
  const open = all.getAttribute("aria-expanded") !== "true";
  all.setAttribute("aria-expanded", open);
  all.textContent = open ? "Hide all cases" : "Show all cases";
  for (const button of rules) fold(button, open);
});
