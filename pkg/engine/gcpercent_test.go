package engine

import (
	"runtime/debug"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWishesOfTheCollector(t *testing.T) {
	inForce := func() int {
		percent := debug.SetGCPercent(-1)
		debug.SetGCPercent(percent)
		return percent
	}
	defer debug.SetGCPercent(debug.SetGCPercent(90))
	var g gcPercent
	endSpending := g.spend()
	require.Equal(t, lavishPercent, inForce())
	endSaving, endSavingToo := g.save(), g.save()
	require.Equal(t, thriftyPercent, inForce())
	endSaving()
	require.Equal(t, thriftyPercent, inForce())
	endSavingToo()
	require.Equal(t, lavishPercent, inForce())
	endSpending()
	require.Equal(t, 90, inForce())

	debug.SetGCPercent(10)
	g.save()()
	require.Equal(t, 10, inForce())
	debug.SetGCPercent(-1)
	end := g.spend()
	require.Equal(t, -1, inForce())
	end()
	require.Equal(t, -1, inForce())
}
