// Numbers for people.

export function bytes(count) {
  if (count >= 2 ** 30) return `${(count / 2 ** 30).toFixed(1)} GiB`;
  return `${Math.round(count / 2 ** 20)} MiB`;
}

export function seconds(count) {
  if (count < 1) return `${Math.round(count * 1000)} ms`;
  if (count < 100) return `${count.toFixed(1)} s`;
  return duration(count);
}

export function duration(count) {
  const minutes = Math.floor(count / 60);
  if (minutes < 1) return `${Math.round(count)} s`;
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} days`;
}

export function number(count) {
  return count.toLocaleString("en");
}

export function rate(perSecond) {
  return `${perSecond < 10 ? perSecond.toFixed(1) : Math.round(perSecond)} tokens/s`;
}

export function percent(fraction) {
  return `${(fraction * 100).toFixed(1)} %`;
}

export function many(count, one, several = `${one}s`) {
  return `${number(count)} ${count === 1 ? one : several}`;
}
