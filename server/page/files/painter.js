// Paints at most once a frame, and keeps what scrolls at its end, unless its reader has gone up.

const NEAR_PIXELS = 60;

export function painter(scrolling, paint) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      const atEnd = scrolling.scrollHeight - scrolling.scrollTop - scrolling.clientHeight < NEAR_PIXELS;
      paint();
      if (atEnd) scrolling.scrollTop = scrolling.scrollHeight;
    });
  };
}
