package serving

import (
	"context"
	"fmt"
)

// Layer says which sources a query reads.
type Layer uint8

// Merged is all sources. Speed is what no block in the bucket holds yet, Batch what the bucket holds; a Source is one of these two.
const (
	Merged Layer = iota
	Speed
	Batch
)

// String returns the layer's name in the HTTP API.
func (l Layer) String() string {
	switch l {
	case Merged:
		return "merged"
	case Speed:
		return "speed"
	case Batch:
		return "batch"
	}
	return fmt.Sprintf("Layer(%d)", uint8(l))
}

// ParseLayer reads a layer's name; the empty one is Merged.
func ParseLayer(name string) (Layer, error) {
	switch name {
	case "", "merged":
		return Merged, nil
	case "speed":
		return Speed, nil
	case "batch":
		return Batch, nil
	}
	return Merged, fmt.Errorf("layer %q: must be merged, speed or batch", name)
}

type layerKey struct{}

// WithLayer narrows the queries under the returned context to one layer.
func WithLayer(ctx context.Context, l Layer) context.Context {
	return context.WithValue(ctx, layerKey{}, l)
}

// LayerOf returns the layer that WithLayer set, else Merged.
func LayerOf(ctx context.Context) Layer {
	l, _ := ctx.Value(layerKey{}).(Layer)
	return l
}
