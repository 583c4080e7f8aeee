import './.config/jest-setup';

// jsdom draws nothing and gives nothing a size; a Combobox measures its texts and shows what is visible of its list.
HTMLCanvasElement.prototype.getContext = () => ({ measureText: (text) => ({ width: 8 * text.length }) });
Object.defineProperties(Element.prototype, { clientHeight: { get: () => 120 }, clientWidth: { get: () => 120 } });
Element.prototype.scrollIntoView = () => {};

class NothingToObserve {
  observe() {}
  unobserve() {}
  disconnect() {}
}
global.IntersectionObserver = NothingToObserve;
global.ResizeObserver = NothingToObserve;
