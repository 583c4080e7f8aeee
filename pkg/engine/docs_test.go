package engine

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestEveryFlagIsDocumented: the table of docs/operations.md has every flag of the server, and none that is not there.
func TestEveryFlagIsDocumented(t *testing.T) {
	raw, err := os.ReadFile("../../docs/operations.md")
	require.NoError(t, err)
	_, table, found := strings.Cut(string(raw), "## Tuning\n")
	require.True(t, found)
	table, _, found = strings.Cut(table, "\n## ")
	require.True(t, found)
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile("`--([a-z0-9.-]+)`").FindAllStringSubmatch(table, -1) {
		documented[m[1]] = true
	}
	flags := knownFlags()
	for name := range flags {
		if ours := strings.Contains(name, ".") || name == "external-label" || name == "enable-feature"; ours && name != "config.file" {
			require.True(t, documented[name], "--%s is missing", name)
		}
	}
	for name := range documented {
		require.Contains(t, flags, name)
	}
}
