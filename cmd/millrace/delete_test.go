package main

import (
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// call makes a request without a body and returns status and body of the answer.
func call(t *testing.T, method, u string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, u, http.NoBody)
	require.NoError(t, err)
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	return resp.StatusCode, string(body)
}

// A user deletes series: gone at once, listed while blocks may hold them, and erased when told so.
func TestDeleteSeries(t *testing.T) {
	path, address := t.TempDir(), freeAddress(t)
	serveOn(t, address, "--storage.path="+path, "--self.scrape-interval=50ms", "--web.enable-admin-api")
	api := "http://" + address + "/api/v1/"
	series := api + "series?match[]=" + url.QueryEscape(`{__name__="up"}`)
	has := func(what string) func() bool {
		return func() bool { _, body := call(t, http.MethodGet, series); return strings.Contains(body, what) }
	}
	require.Eventually(t, func() bool { return answers(t, "http://"+address+"/-/ready") && has(`"up"`)() }, 30*time.Second, 20*time.Millisecond)

	code, body := call(t, http.MethodPost, api+"admin/tsdb/delete_series")
	require.Equal(t, http.StatusBadRequest, code, body)
	now := time.Now().UTC().Add(time.Minute).Format(time.RFC3339)
	code, body = call(t, http.MethodPost, api+"admin/tsdb/delete_series?match[]="+url.QueryEscape(`{job="millrace"}`)+"&end="+now)
	require.Equal(t, http.StatusNoContent, code, body)
	code, body = call(t, http.MethodPost, api+"batch/run")
	require.Equal(t, http.StatusOK, code, body)
	require.Eventually(t, has(`"up"`), 30*time.Second, 20*time.Millisecond, "what is written later is seen")

	out, errs, code := millrace(t, "bucket", "ls", "--storage.path="+path)
	require.Zero(t, code, errs)
	require.Regexp(t, `DELETION +FROM +TO +UP TO GENERATION`, out)
	require.Regexp(t, `- +`+now+` +\d+ +\{job="millrace"\} +\{millrace="main"\}`, out)
	code, body = call(t, http.MethodPost, api+"admin/tsdb/clean_tombstones")
	require.Equal(t, http.StatusNoContent, code, body)
}

func TestDeleteSeriesMustBeAllowed(t *testing.T) {
	address := freeAddress(t)
	serveOn(t, address, "--storage.path="+t.TempDir())
	require.Eventually(t, func() bool { return answers(t, "http://"+address+"/-/ready") }, 30*time.Second, 20*time.Millisecond)
	for _, name := range []string{"delete_series?match[]=up", "clean_tombstones"} {
		code, body := call(t, http.MethodPost, "http://"+address+"/api/v1/admin/tsdb/"+name)
		require.Equal(t, http.StatusServiceUnavailable, code)
		require.Contains(t, body, "admin APIs disabled")
	}
}

// What is imported lists the deletions from before as no concern of its own. The same deletion once more is a later one, even if nothing was written in between.
func TestTheSameDeletionAfterAnImport(t *testing.T) {
	path, address := t.TempDir(), freeAddress(t)
	serveOn(t, address, "--storage.path="+path, "--self.scrape-interval=0s", "--objstore.sync-interval=1s", "--web.enable-admin-api")
	root := "http://" + address
	require.Eventually(t, func() bool { return answers(t, root+"/-/ready") }, 30*time.Second, 20*time.Millisecond)
	values := func() string { return post(t, root+"/api/v1/query?query=count_over_time(m[10d])&time=1000200000") }
	remove := func() {
		code, body := call(t, http.MethodPost, root+"/api/v1/admin/tsdb/delete_series?match[]=m")
		require.Equal(t, http.StatusNoContent, code, body)
	}
	bring := func(at string) {
		_, errs, code := millrace(t, "import", "openmetrics", "--storage.path="+path, "--import.scratch-path="+t.TempDir(), file(t, "m 1 "+at+"\n# EOF\n"))
		require.Zero(t, code, errs)
	}
	require.Eventually(t, func() bool { // as on a disk that was used before
		entries, err := os.ReadDir(path + "/bucket")
		return err == nil && len(entries) > 0
	}, 30*time.Second, 20*time.Millisecond)
	bring("1000000000")
	require.Eventually(t, func() bool { return strings.Contains(values(), `"1"]`) }, 30*time.Second, 50*time.Millisecond)
	remove()
	require.NotContains(t, values(), `"1"]`)
	require.Eventually(t, func() bool {
		_, body := call(t, http.MethodGet, root+"/api/v1/layers")
		return strings.Contains(body, `"uploaded":true`)
	}, 30*time.Second, 20*time.Millisecond)
	bring("1000100000")
	require.Eventually(t, func() bool { return strings.Contains(values(), `"1"]`) }, 30*time.Second, 50*time.Millisecond)
	remove()
	require.NotContains(t, values(), `"1"]`)
}
