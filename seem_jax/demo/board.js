// Sends one gesture on the picture: {where: [[x, y], ...] as fractions of it, negative}. A press without a
// move is a click; Shift or the right button says "not this". At most 400 corners are sent.
const MOST = 400;
let corners = null, negative = false;
const picture = () => element.querySelector("img.board");
const tool = () => document.querySelector(`${props.tools} input:checked`)?.value ?? "click";
const spot = (event) => {
  const box = picture().getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
};
const sketch = () => {
  const line = element.querySelector("polyline");
  if (!line) return;
  let shown = corners ?? [];
  if (tool() === "click") shown = [];
  if (tool() === "box" && shown.length) {
    const [[a, b], [c, d]] = [shown[0], shown[shown.length - 1]];
    shown = [[a, b], [c, b], [c, d], [a, d], [a, b]];
  }
  line.setAttribute("points", shown.map((corner) => corner.join(",")).join(" "));
};
element.addEventListener("contextmenu", (event) => event.preventDefault());
element.addEventListener("pointerdown", (event) => {
  if (!picture() || !element.querySelector(".frame").contains(event.target)) return;
  event.preventDefault();
  try { element.setPointerCapture(event.pointerId); } catch { /* a pointer that left already */ }
  corners = [spot(event)];
  negative = event.button === 2 || event.shiftKey;
});
element.addEventListener("pointermove", (event) => {
  if (!corners) return;
  corners.push(spot(event));
  sketch();
});
element.addEventListener("pointercancel", () => { corners = null; sketch(); });
element.addEventListener("pointerup", (event) => {
  if (!corners) return;
  corners.push(spot(event));
  const every = Math.ceil(corners.length / MOST);
  const where = corners.filter((_, index) => index % every === 0 || index === corners.length - 1);
  corners = null;
  trigger("gesture", { where, negative });
});
