package engine

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestAListingAndAnUploadRememberTheBucketAtOnce has two goroutines write the file that both keep.
func TestAListingAndAnUploadRememberTheBucketAtOnce(t *testing.T) {
	e := startEngine(t, testConfig(t, t.TempDir()))
	var work sync.WaitGroup
	for range 2 {
		work.Go(func() {
			for range 50 {
				if err := e.saveListing(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	work.Wait()
	require.NoError(t, e.State().Err)
}
