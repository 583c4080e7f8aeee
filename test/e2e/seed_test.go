package e2e

import (
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// Environment variables: the seed of a run to repeat, and how many times the usual rounds and outages a test goes through.
const (
	seedVariable  = "MILLRACE_TEST_SEED"
	scaleVariable = "MILLRACE_TEST_SCALE"
)

// dice is a source of chance for several goroutines.
type dice struct {
	mu sync.Mutex
	r  *rand.Rand
}

// newDice says its seed if the test fails.
func newDice(t *testing.T) *dice {
	t.Helper()
	seed := rand.Uint64()
	if text := os.Getenv(seedVariable); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		require.NoError(t, err, seedVariable)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("once more with %s=%d", seedVariable, seed)
		}
	})
	return &dice{r: rand.New(rand.NewPCG(seed, 0))}
}

// n is a number below limit.
func (d *dice) n(limit int64) int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.r.Int64N(limit)
}

func (d *dice) float() float64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.r.Float64()
}

// scale is 1, or what the environment asks for.
func scale(t *testing.T) int {
	t.Helper()
	text := os.Getenv(scaleVariable)
	if text == "" {
		return 1
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err, scaleVariable)
	require.Positive(t, n, scaleVariable)
	return n
}
