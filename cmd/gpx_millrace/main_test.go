package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFromGrafana(t *testing.T) {
	for key, want := range map[string]bool{
		"GF_PLUGIN_VERSION": true, "GF_PLUGIN_APP_CLIENT_SECRET": true, "GF_PLUGIN_PROFILING_ENABLED": true,
		"GF_PLUGIN_STORAGE_PAHT": false, "GF_PLUGIN_VERSIONS": false,
	} {
		require.Equal(t, want, fromGrafana(key), key)
	}
}
